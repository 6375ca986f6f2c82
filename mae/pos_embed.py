"""Fixed 2-D sine-cosine position tables (Paper: Section 3 and Appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_2d(
    dim: int, grid: tuple[int, int], *, scaled_to: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""The position table of a grid of patches with a zero row for the class token.

    The first half of the channels encodes the **column**, the second half the **row**, and each half is
    [sin(x w) | cos(x w)] with :math:`w_i = 10000^{-i / (D/4)}`, computed in float64.

    Args:
        dim: D, the table's width, a multiple of 4.
        grid: Patches as (rows, columns).
        scaled_to: Another grid over the same image: positions are scaled to its range, so that each patch has the
            position of its centre there. None for 0, 1, 2, ...
        dtype: Type of the returned table.

    Returns:
        (1, 1 + rows * columns, D), on the CPU.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4; got {dim}")
    rows, columns = grid
    # On the CPU whatever the default device is: not all have float64, and all are to hold the same numbers.
    cpu = torch.device("cpu")
    quarter = torch.arange(dim // 4, dtype=torch.float64, device=cpu)
    frequency = 1.0 / 10000.0 ** (quarter / (dim / 4))  # (D/4,)
    row, column = (torch.arange(length, dtype=torch.float64, device=cpu) for length in grid)
    if scaled_to is not None:
        row, column = (
            (x + 0.5) * (old / new) - 0.5 for x, old, new in zip((row, column), scaled_to, grid, strict=True)
        )
    row = row.repeat_interleave(columns)  # (L,)
    column = column.repeat(rows)  # (L,)
    halves = []
    for position in (column, row):
        angle = position[:, None] * frequency  # (L, D/4)
        halves += [angle.sin(), angle.cos()]
    class_row = torch.zeros(1, dim, dtype=torch.float64, device=cpu)
    return torch.cat([class_row, torch.cat(halves, dim=1)])[None].to(dtype)


def on_default_device(table: Tensor) -> Tensor:
    """A table where ``with torch.device(...)`` puts a model's weights; a "meta" table would hold nothing."""
    default = torch.empty(0).device
    return table if default.type == "meta" else table.to(default)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Bicubic resampling of a position table that is not sine-cosine to another grid.

    Args:
        table: (1, 1 + rows * columns, D) on the grid ``old``; the class token's row stays as it is.
        old, new: Grids as (rows, columns).
    """
    positions = table[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # (1, D, rows, columns)
    resized = torch.nn.functional.interpolate(positions, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
