"""Convert any of Pillow's modes to 8 bits with the wanted channels, one strip at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.errors import DataError

BACKGROUND = "white"  # colour behind transparent pixels
STRIP_PIXELS = 2**22
# Pillow's mode by number of channels; Pillow has none for more channels.
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def with_channels(image: Image.Image, mode: str, most: int | None = None, inverted: bool = False) -> Image.Image:
    """Convert an image to one of ``MODES``, strip by strip, so that memory holds at most two copies of it.

    Args:
        image: A decoded image of any mode.
        mode: "L", "LA", "RGB" or "RGBA"; for modes without alpha, transparent pixels are blended with white.
        most: Value of white in grey images of more than 8 bits, if the file gives it.
        inverted: Whether 0 is white in grey images of more than 8 bits.
    """
    if image.mode == mode and "transparency" not in image.info:
        return image
    span = _value_range(image, most) if _is_deep(image) else (0.0, 255.0)
    if image.width * image.height <= STRIP_PIXELS:
        return _converted(image, mode, span, inverted)
    result, top = Image.new(mode, image.size), 0
    for strip in _strips(image):
        result.paste(_converted(strip, mode, span, inverted), (0, top))
        top += strip.height
    return result


def _strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _converted(image: Image.Image, mode: str, span: tuple[float, float], inverted: bool) -> Image.Image:
    if _is_deep(image):
        image = _to_8_bits(image, span, inverted)
    if image.mode == "La":  # premultiplied grey, which Pillow converts to one mode only
        image = image.convert("LA")
    if image.mode == "1" and "transparency" in image.info:  # Pillow would compare 0 and 1 with 0 and 255
        image = image.convert("L")
    transparent = image.has_transparency_data
    if mode in ("L", "RGB") and transparent:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, BACKGROUND)
        page.alpha_composite(layer)
        return page.convert("RGB").convert(mode)
    if mode in ("L", "LA") and image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if transparent else "RGB")
    if mode == "LA" and transparent and image.mode not in ("LA", "RGBA"):
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _value_range(image: Image.Image, most: int | None) -> tuple[float, float]:
    """The values that become black (0) and white (255); Pillow's own conversion would clip at 255.

    Integers up to 65535 are scaled by 65535, or by the file's value of white, so that images of one scanner stay
    comparable; floats within [0, 1] are scaled by 1; other values are scaled from the image's minimum to its maximum.
    """
    low, high = np.inf, -np.inf
    for strip in _strips(image):
        values = _values(strip)
        if not np.isfinite([values.min(), values.max()]).all():
            raise DataError("holds NaN or infinity")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= 0 and image.mode != "F" and high <= (most or 65535):
        return 0.0, float(most or 65535)
    if low >= 0 and image.mode == "F" and high <= 1:
        return 0.0, 1.0
    return low, high


def _to_8_bits(image: Image.Image, span: tuple[float, float], inverted: bool) -> Image.Image:
    low, high = span
    values = _values(image).astype(np.float64)
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    grey = Image.fromarray(np.rint(255 - scaled if inverted else scaled).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the grey value that the PNG declares transparent
        grey.putalpha(Image.fromarray(((values != clear) * np.uint8(255)).astype(np.uint8)))
    return grey


def _values(image: Image.Image) -> NDArray[np.generic]:
    values: NDArray[np.generic] = np.asarray(image)
    return values
