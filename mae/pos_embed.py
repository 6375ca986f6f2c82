"""Fixed 2-D sine-cosine position embeddings (Paper: Section 3 and Appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_2d(
    dim: int, grid: tuple[int, int], *, scaled_to: tuple[int, int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Position embeddings of a grid of patches, and zeros for the class token.

    The first half of the channels encodes the **column**, the second half the **row**. Each half is
    [sin(x w) | cos(x w)] with :math:`w_i = 10000^{-i / (D/4)}`, computed in float64.

    Args:
        dim: D, width of the embeddings, a multiple of 4.
        grid: Number of patches as (rows, columns).
        scaled_to: Another grid over the same image, whose coordinates are used: the position of a patch is the place
            of its centre in that grid. None: positions are 0, 1, 2, ...
        dtype: Type of the result.

    Returns:
        (1, 1 + rows * columns, D), on the CPU.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4; got {dim}")
    rows, columns = grid
    # Always on the CPU: not all devices have float64, and the numbers must be the same on all devices.
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
    """The table on torch's default device, as a model's weights; on the CPU if the default is "meta"."""
    default = torch.empty(0).device
    return table if default.type == "meta" else table.to(default)


def resize_table(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample learnt position embeddings to another grid (bicubic).

    Args:
        table: Embeddings for the grid ``old``, (1, 1 + rows * columns, D). That of the class token is not changed.
        old, new: Grids as (rows, columns).

    Returns:
        Embeddings for the grid ``new``, (1, 1 + rows * columns, D).
    """
    positions = table[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # (1, D, rows, columns)
    resized = torch.nn.functional.interpolate(positions, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
