"""From any of Pillow's modes to 8 bits in the wanted channels, a strip at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.errors import DataError

BACKGROUND = "white"  # what a transparent pixel is laid over
STRIP_PIXELS = 2**22
# Pillow's mode for so many channels; more than these Pillow cannot hold.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def with_channels(picture: Image.Image, mode: str, most: int | None = None, inverted: bool = False) -> Image.Image:
    """The picture in one of ``MODES``; strip by strip, so that a large one is held twice and no more.

    Args:
        picture: Decoded, of any mode.
        mode: "L", "LA", "RGB" or "RGBA"; transparency is laid over white for those without alpha.
        most: The value of white in deep grey, where the file says it.
        inverted: Whether the file counts deep grey from white to black.
    """
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    span = _value_range(picture, most) if _is_deep(picture) else (0.0, 255.0)
    if picture.width * picture.height <= STRIP_PIXELS:
        return _converted(picture, mode, span, inverted)
    result, top = Image.new(mode, picture.size), 0
    for strip in _strips(picture):
        result.paste(_converted(strip, mode, span, inverted), (0, top))
        top += strip.height
    return result


def _strips(picture: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        yield picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _converted(picture: Image.Image, mode: str, span: tuple[float, float], inverted: bool) -> Image.Image:
    if _is_deep(picture):
        picture = _to_8_bits(picture, span, inverted)
    if picture.mode == "La":  # premultiplied grey; Pillow knows one way out
        picture = picture.convert("LA")
    if picture.mode == "1" and "transparency" in picture.info:  # Pillow would compare 0 and 1 with 0 and 255
        picture = picture.convert("L")
    transparent = picture.has_transparency_data
    if mode in ("L", "RGB") and transparent:
        layer = picture.convert("RGBA")
        page = Image.new("RGBA", layer.size, BACKGROUND)
        page.alpha_composite(layer)
        return page.convert("RGB").convert(mode)
    if mode in ("L", "LA") and picture.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        picture = picture.convert("RGBA" if transparent else "RGB")
    if mode == "LA" and transparent and picture.mode not in ("LA", "RGBA"):
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def _is_deep(picture: Image.Image) -> bool:
    return picture.mode.startswith("I") or picture.mode == "F"


def _value_range(picture: Image.Image, most: int | None) -> tuple[float, float]:
    """What becomes black and what becomes white; Pillow's own conversion clips at 255.

    Whole numbers up to 65535 are a fraction of 65535, or of what the file says white is (so two pictures of
    one scanner stay comparable), floats within [0, 1] a fraction of 1; anything else is stretched from its
    lowest to its highest value.

    Raises:
        DataError: There is NaN or infinity.
    """
    low, high = np.inf, -np.inf
    for strip in _strips(picture):
        values = _values(strip)
        if not np.isfinite([values.min(), values.max()]).all():
            raise DataError("holds NaN or infinity")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= 0 and picture.mode != "F" and high <= (most or 65535):
        return 0.0, float(most or 65535)
    if low >= 0 and picture.mode == "F" and high <= 1:
        return 0.0, 1.0
    return low, high


def _to_8_bits(picture: Image.Image, span: tuple[float, float], inverted: bool) -> Image.Image:
    low, high = span
    values = _values(picture).astype(np.float64)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    grey = Image.fromarray(np.rint(255 - scaled if inverted else scaled).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # the one grey that a PNG calls transparent
        grey.putalpha(Image.fromarray(((values != clear) * np.uint8(255)).astype(np.uint8)))
    return grey


def _values(picture: Image.Image) -> NDArray[np.generic]:
    values: NDArray[np.generic] = np.asarray(picture)
    return values
