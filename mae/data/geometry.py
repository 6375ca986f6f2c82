"""Bring a whole photograph to the model's frame without distorting it."""

from __future__ import annotations

from PIL import Image

LONGEST_SHAPE = 64  # times as long as wide; a frame of that shape has eight times the length of the square's side


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
    """The frame (rows, columns) in whole patches that has about the area of ``size`` and the picture's shape.

    A picture of one row and thousands of columns gets the frame of one that is ``LONGEST_SHAPE`` times as long as wide.
    """
    width = min(picture.width, LONGEST_SHAPE * picture.height)
    height = min(picture.height, LONGEST_SHAPE * picture.width)
    scale = (size[0] * size[1] / (width * height)) ** 0.5
    rows = max(1, round(height * scale / patch_size)) * patch_size
    columns = max(1, round(width * scale / patch_size)) * patch_size
    return rows, columns
