"""The EXIF orientation of stored images."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

    from mae.data.crop import Box

_ORIENTATION = 0x0112


class Turn(NamedTuple):
    """The transformation that makes a stored image upright: swap rows and columns, then flip.

    Attributes:
        swap, flip_rows, flip_columns: Which of these steps to apply.
        transpose: Pillow's name for all steps together; None for an upright image.
    """

    swap: bool
    flip_rows: bool
    flip_columns: bool
    transpose: Image.Transpose | None

    def stored(self, box: Box, rows: int, columns: int) -> Box:
        """The box in the stored image that corresponds to ``box`` in the upright image of size (rows, columns)."""
        top = rows - box.top - box.height if self.flip_rows else box.top
        left = columns - box.left - box.width if self.flip_columns else box.left
        if self.swap:
            return box._replace(top=left, left=top, height=box.width, width=box.height)
        return box._replace(top=top, left=left)

    def apply(self, pixels: Tensor) -> Tensor:
        """Turn stored pixels (rows, columns, C) upright."""
        pixels = pixels.transpose(0, 1) if self.swap else pixels
        flips = [axis for axis, flip in enumerate((self.flip_rows, self.flip_columns)) if flip]
        return pixels.flip(flips) if flips else pixels


# EXIF orientation -> turn.
TURNS = {
    1: Turn(False, False, False, None),
    2: Turn(False, False, True, Image.Transpose.FLIP_LEFT_RIGHT),
    3: Turn(False, True, True, Image.Transpose.ROTATE_180),
    4: Turn(False, True, False, Image.Transpose.FLIP_TOP_BOTTOM),
    5: Turn(True, False, False, Image.Transpose.TRANSPOSE),
    6: Turn(True, False, True, Image.Transpose.ROTATE_270),
    7: Turn(True, True, True, Image.Transpose.TRANSVERSE),
    8: Turn(True, True, False, Image.Transpose.ROTATE_90),
}
UPRIGHT = TURNS[1]


def turn_of(opened: Image.Image) -> Turn:
    """The turn that makes an opened image upright; no turn if EXIF is missing or damaged."""
    try:
        value = opened.getexif().get(_ORIENTATION, 1)
    except (ArithmeticError, AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return UPRIGHT
    return TURNS.get(value, UPRIGHT) if isinstance(value, int) else UPRIGHT
