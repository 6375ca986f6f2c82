"""EXIF orientation: one table for pixels, boxes and Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.crop import Box
from mae.data.decoding.orientation import TURNS, UPRIGHT, turn_of


@pytest.mark.parametrize(("number", "transpose"), [
    (1, None), (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180),
    (4, Image.Transpose.FLIP_TOP_BOTTOM), (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_270),
    (7, Image.Transpose.TRANSVERSE), (8, Image.Transpose.ROTATE_90),
])  # fmt: skip
def test_a_turned_box_holds_the_same_pixels(number: int, transpose: Image.Transpose | None) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (30, 48, 3), np.uint8)
    turn = TURNS[number]
    assert turn.transpose == transpose
    image = Image.fromarray(stored)
    upright = np.asarray(image if transpose is None else image.transpose(transpose))
    assert (turn.apply(torch.from_numpy(stored.copy())).numpy() == upright).all()
    box = Box(3, 5, 11, 17)
    top, left, height, width = (int(side) for side in turn.stored(box, *upright.shape[:2]))
    part = torch.from_numpy(stored[top : top + height, left : left + width].copy())
    assert (turn.apply(part).numpy() == upright[3 : 3 + 11, 5 : 5 + 17]).all()


@pytest.mark.parametrize("value", [0, 9, 65535, 1])
def test_what_exif_does_not_know_is_upright(value: int) -> None:
    image = Image.new("L", (3, 2))
    image.getexif()[0x0112] = value
    assert turn_of(image) is UPRIGHT
    image.getexif()[0x0112] = 6
    assert turn_of(image) is TURNS[6]
