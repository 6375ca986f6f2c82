"""Draw rows of pictures with titles and captions; PIL only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mae.config import PICTURE_FORMATS
from mae.errors import ConfigError
from mae.files import write_atomically

MARGIN = 12
GAP = 6
TITLE_SIZE = 16
CAPTION_SIZE = 13
SMALLEST_PANEL = 192
LONGEST_SIDE = {"WEBP": 16_383, "JPEG": 65_500}  # pixels that a format can hold
INK = (34, 34, 34)
FAINT = (110, 110, 110)


@dataclasses.dataclass(frozen=True)
class Row:
    """Pictures side by side, and a line of text below them."""

    pictures: Sequence[Image.Image]
    caption: str


def draw_grid(titles: Sequence[str], rows: Sequence[Row], note: str = "") -> Image.Image:
    """A white page with one column per title.

    Small pictures are enlarged by a whole factor without smoothing, so that their pixels stay what they are.

    Args:
        titles: Over the columns.
        rows: Each with as many pictures as there are titles.
        note: A line at the foot of the page.
    """
    factor = max(1, -(-SMALLEST_PANEL // max(row.pictures[0].width for row in rows)))
    rows = [Row([_enlarge(picture, factor) for picture in row.pictures], row.caption) for row in rows]
    cell = max(picture.width for row in rows for picture in row.pictures)
    title_font, caption_font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(CAPTION_SIZE)
    width = 2 * MARGIN + len(titles) * cell + (len(titles) - 1) * GAP
    captions = [_wrap(row.caption, caption_font, width - 2 * MARGIN) for row in rows]
    foot = _wrap(note, caption_font, width - 2 * MARGIN) if note else []
    line = CAPTION_SIZE + 5
    heights = [max(p.height for p in row.pictures) for row in rows]
    height = 2 * MARGIN + TITLE_SIZE + 8 + sum(heights) + sum(len(text) * line + 14 for text in captions)
    page = Image.new("RGB", (width, height + len(foot) * line), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (cell + GAP) + cell / 2, MARGIN), title, INK, title_font, anchor="mt")
    top = MARGIN + TITLE_SIZE + 8
    for row, row_height, text in zip(rows, heights, captions, strict=True):
        for column, picture in enumerate(row.pictures):
            left = MARGIN + column * (cell + GAP) + (cell - picture.width) // 2
            page.paste(picture.convert("RGB"), (left, top + (row_height - picture.height) // 2))
        top += row_height + 4
        for words in text:
            draw.text((MARGIN, top), words, FAINT, caption_font)
            top += line
        top += 10
    for words in foot:
        draw.text((MARGIN, top), words, FAINT, caption_font)
        top += line
    return page


def _enlarge(picture: Image.Image, factor: int) -> Image.Image:
    if factor == 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture in the format of its name's suffix, whole or not at all.

    Raises:
        ConfigError: The file cannot be written.
    """
    kind = PICTURE_FORMATS[path.suffix.lower()]
    if max(picture.size) > LONGEST_SIDE.get(kind, max(picture.size)):
        raise ConfigError(
            f"cannot write {path}: {picture.width:,} x {picture.height:,} pixels are more than {kind} can hold",
            hint="give a name that ends in .png, or fewer pictures",
        )
    options = {"JPEG": {"quality": 92}, "WEBP": {"quality": 92}}.get(kind, {})
    try:
        write_atomically(path, lambda file: picture.save(file, format=kind, **options))
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
