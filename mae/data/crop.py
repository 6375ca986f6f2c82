"""The official random resized crop: drawing the box and resampling its pixels (Paper: Appendix A.1)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
# Largest position error of a resampled row, in pixels of the source.
OFFSET_TOLERANCE = 0.02
MOST_LEADING_ROWS = 24


class Box(NamedTuple):
    """A rectangle of an image in pixels; coordinates are fractional if the image was decoded at a smaller size."""

    top: float
    left: float
    height: float
    width: float

    def scaled(self, factor: float) -> Box:
        """The same rectangle of an image whose sides are ``factor`` times as long."""
        return Box(*(side * factor for side in self))


def draw_box(
    rows: int,
    columns: int,
    scale: tuple[float, float],
    generator: torch.Generator,
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """Draw the box of a random crop as torchvision's RandomResizedCrop does, from a given generator.

    Args:
        rows, columns: Size of the upright image in pixels.
        scale: Smallest and largest fraction of the image's area.
        generator: Random generator; torchvision's global generator in the same state gives the same box.
        ratio: Smallest and largest aspect ratio, columns / rows.
    """
    log_ratio = torch.log(torch.tensor(ratio)).tolist()  # rounded as torchvision's is
    for _ in range(ATTEMPTS):
        area = rows * columns * torch.empty(1).uniform_(*scale, generator=generator).item()
        shape = torch.exp(torch.empty(1).uniform_(*log_ratio, generator=generator)).item()
        width, height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < width <= columns and 0 < height <= rows:
            top = int(torch.randint(0, rows - height + 1, (1,), generator=generator))
            left = int(torch.randint(0, columns - width + 1, (1,), generator=generator))
            return Box(top, left, height, width)
    if columns / rows < ratio[0]:
        width, height = columns, max(1, round(columns / ratio[0]))
    elif columns / rows > ratio[1]:
        width, height = max(1, round(rows * ratio[1])), rows  # torchvision's box may have a side of 0 pixels
    else:
        width, height = columns, rows
    return Box((rows - height) // 2, (columns - width) // 2, height, width)


def resample(pixels: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> Tensor:
    """Resample a rectangle of an image, bicubic with antialiasing.

    torch's fast 8-bit kernel can only start at a whole pixel. If the box starts at a fraction of a pixel, a few rows
    above it are resampled too, such that the first one starts (nearly) at a whole pixel; they are dropped from the
    result.

    Args:
        pixels: Image, (rows, columns, C) uint8.
        box: The rectangle.
        size: Size of the result, (rows, columns).

    Returns:
        (rows, columns, C) uint8.
    """
    if pixels.shape[2] in (2, 4):
        return _resample_with_alpha(pixels, box, size)
    step_down, step_across = box.height / size[0], box.width / size[1]
    top, drop_top = _whole_start(box.top, step_down)
    left, drop_left = _whole_start(box.left, step_across)
    part = pixels[top : math.ceil(box.top + box.height - 1e-6), left : math.ceil(box.left + box.width - 1e-6)]
    imgs = torch.from_numpy(part).permute(2, 0, 1)[None]  # (1, C, h, w) with channels last in memory
    # torch.nn.functional.interpolate takes a size or a scale; a fractional box needs both.
    resampled: Tensor = torch.ops.aten._upsample_bicubic2d_aa(
        imgs, [size[0] + drop_top, size[1] + drop_left], False, 1 / step_down, 1 / step_across
    )
    return resampled[0, :, drop_top:, drop_left:].permute(1, 2, 0)


def _resample_with_alpha(pixels: NDArray[np.uint8], box: Box, size: tuple[int, int]) -> Tensor:
    """Resample with Pillow, which weights colours by alpha, so that transparent pixels do not contribute."""
    top, left, height, width = (int(side) for side in box)
    part = Image.fromarray(pixels[top : top + height, left : left + width])
    return torch.from_numpy(np.array(part.resize((size[1], size[0]), Image.Resampling.BICUBIC)))


def offset_error(start: float, step: float) -> float:
    """The position error of ``resample``, in pixels of the source."""
    whole, leading = _whole_start(start, step)
    return abs(start - leading * step - whole)


def _whole_start(start: float, step: float) -> tuple[int, int]:
    """A whole pixel to start at, and the number of resampled rows between it and ``start``."""
    best = (abs(start - round(start)), round(start), 0)
    for leading in range(1, MOST_LEADING_ROWS):
        if best[0] <= OFFSET_TOLERANCE or start - leading * step < -OFFSET_TOLERANCE:
            break
        at = start - leading * step
        best = min(best, (abs(at - round(at)), max(0, round(at)), leading))
    return best[1], best[2]
