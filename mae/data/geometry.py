"""Bring a whole photograph to the model's frame without distorting it."""

from __future__ import annotations

from PIL import Image


def crop_to(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale until the picture just covers ``size`` (rows, columns), then cut off what is over, evenly."""
    rows, columns = size
    scale = max(columns / picture.width, rows / picture.height)
    # The part of the picture that will be seen; resampling from it scales both axes alike.
    width, height = min(columns / scale, picture.width), min(rows / scale, picture.height)
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    box = (left, top, left + width, top + height)
    return picture.resize((columns, rows), Image.Resampling.BICUBIC, box=box)


def whole_size(picture: Image.Image, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The frame (rows, columns) in whole patches that has about the area of ``size`` and the picture's shape."""
    scale = (size[0] * size[1] / (picture.width * picture.height)) ** 0.5
    rows = max(1, round(picture.height * scale / patch_size)) * patch_size
    columns = max(1, round(picture.width * scale / patch_size)) * patch_size
    return rows, columns
