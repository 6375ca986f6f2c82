"""A contact sheet: some images of a data set side by side."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mae.io.text import shown

CELL = 192  # largest width and height of an image, pixels
MARGIN, GAP, CAPTION = 12, 8, 18
_FORMATS = {".png": "PNG", ".webp": "WEBP"}
_INK, _FAINT = (34, 34, 34), (110, 110, 110)


class Tile(NamedTuple):
    """An image of the contact sheet.

    Attributes:
        name: Name of the image.
        width, height: Size of the original image.
        thumbnail: The reduced image as a JPEG file.
    """

    name: str
    width: int
    height: int
    thumbnail: bytes

    @property
    def data_uri(self) -> str:
        """The thumbnail as a data URI for an HTML page."""
        return "data:image/jpeg;base64," + base64.b64encode(self.thumbnail).decode()

    @property
    def caption(self) -> str:
        """File name and size of the image."""
        return f"{shown(PurePath(self.name).name)}, {self.width} x {self.height}"


def contact_sheet(tiles: Sequence[Tile], suffix: str) -> bytes:
    """Draw a white page of images with their names and sizes.

    Args:
        tiles: The images.
        suffix: Suffix of the file name, which gives the format: ".png", ".webp", or another one for JPEG.

    Returns:
        The content of the image file.
    """
    columns = max(1, math.ceil(math.sqrt(len(tiles) * 4 / 3)))
    rows = max(1, -(-len(tiles) // columns))
    page = Image.new(
        "RGB",
        (2 * MARGIN + columns * (CELL + GAP) - GAP, 2 * MARGIN + rows * (CELL + CAPTION + GAP) - GAP),
        (255, 255, 255),
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, tile in enumerate(tiles):
        left = MARGIN + number % columns * (CELL + GAP)
        top = MARGIN + number // columns * (CELL + CAPTION + GAP)
        with Image.open(io.BytesIO(tile.thumbnail)) as image:
            page.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))
        draw.text((left, top + CELL + 3), _fitted(tile, font), _FAINT, font)
    if not tiles:
        draw.text((MARGIN, MARGIN), "no image could be decoded", _INK, font)
    file = io.BytesIO()
    page.save(file, _FORMATS.get(suffix, "JPEG"), quality=85)
    return file.getvalue()


def _fitted(tile: Tile, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The caption; if it is wider than a cell, the middle of the name is cut out."""
    name = shown(PurePath(tile.name).name)
    size = f"  {tile.width} x {tile.height}"
    while len(name) > 8 and font.getlength(name + size) > CELL:
        middle = len(name) // 2
        name = f"{name[: middle - 2]}…{name[middle + 1 :]}"
    return name + size
