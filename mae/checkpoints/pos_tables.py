"""Check whether position tables follow the sine-cosine formula, and for which grid of patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mae.pos_embed import sincos_2d

LIKE_FORMULA = 1e-4  # far above the rounding of float32, far below the difference to the next position


def follows_formula(table: Tensor, grid: tuple[int, int]) -> bool:
    """Whether a table (1, 1 + rows * columns, D) is the sine-cosine table, up to the rounding of its type."""
    if table.ndim != 3 or table.shape[:2] != (1, 1 + grid[0] * grid[1]) or table.shape[2] % 4:
        return False
    if not table.is_floating_point():  # quantised
        return False
    width = table.shape[2]
    off = (table.float() - sincos_2d(width, grid)).abs().max()
    return bool(off < LIKE_FORMULA + torch.finfo(table.dtype).eps)


def grid_of(table: Tensor) -> tuple[int, int] | None:
    """The grid (rows, columns) of a sine-cosine table, or None; its shape does not distinguish 7x28 from 14x14."""
    patches = table.shape[1] - 1 if table.ndim == 3 else 0
    if patches < 1:
        return None
    divisors = [rows for rows in range(1, patches + 1) if patches % rows == 0]
    divisors.sort(key=lambda rows: abs(math.log(rows * rows / patches)))  # the square first
    return next((grid for rows in divisors if follows_formula(table, grid := (rows, patches // rows))), None)
