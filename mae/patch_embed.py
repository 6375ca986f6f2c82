"""Conversion of images to patches and back, and the linear embedding of patches (Paper: Section 3)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mae.attention import is_weight_alone


def patchify(imgs: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches; a patch's vector is ordered (row, column, channel).

    Args:
        imgs: (B, C, H, W); H and W must be multiples of ``patch_size``.
        patch_size: Side p of a patch in pixels.

    Returns:
        (B, L, p * p * C), patches in reading order.

    Raises:
        ValueError: The shape is wrong.
    """
    if imgs.ndim != 4 or imgs.shape[2] % patch_size or imgs.shape[3] % patch_size:
        raise ValueError(f"imgs must be (B, C, H, W) with H and W multiples of {patch_size}; got {tuple(imgs.shape)}")
    batch, channels, height, width = imgs.shape
    p = patch_size
    x = imgs.reshape(batch, channels, height // p, p, width // p, p)
    x = x.permute(0, 2, 4, 3, 5, 1)  # (B, rows, columns, p, p, C)
    return x.reshape(batch, (height // p) * (width // p), p * p * channels)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``patchify``.

    Args:
        patches: (B, L, p * p * C), patches in reading order.
        patch_size: Side p of a patch in pixels.
        grid: Number of patches as (rows, columns).

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: The shape is wrong.
    """
    rows, columns = grid
    p = patch_size
    if patches.ndim != 3 or patches.shape[1] != rows * columns or patches.shape[2] % (p * p):
        raise ValueError(
            f"patches must be (B, {rows * columns}, {p} * {p} * C) for a {rows}x{columns} grid; "
            f"got {tuple(patches.shape)}"
        )
    channels = patches.shape[2] // (p * p)
    x = patches.reshape(-1, rows, columns, p, p, channels)
    x = x.permute(0, 5, 1, 3, 2, 4)  # (B, C, rows, p, columns, p)
    return x.reshape(-1, channels, rows * p, columns * p)


class PatchEmbed(nn.Module):
    """Linear projection of flattened patches (Paper: Section 3.1).

    The weight is that of a convolution, (D, C, p, p), as in the released files. ``forward`` embeds whole images.
    ``embed`` embeds given patches, so that training computes the embeddings of visible patches only.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.in_chans = in_chans
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def reset_parameters(self) -> None:
        """Initialise the weight with Xavier uniform as a Linear's, and the bias with the default of a convolution.

        The official model does the same.
        """
        nn.init.xavier_uniform_(self.proj.weight.view(self.proj.weight.shape[0], -1))
        bound = 1 / math.sqrt(self.proj.weight[0].numel())
        assert self.proj.bias is not None
        nn.init.uniform_(self.proj.bias, -bound, bound)

    def forward(self, imgs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D)."""
        return self.embed(patchify(imgs, self.patch_size))

    def embed(self, patches: Tensor) -> Tensor:
        """(B, K, p * p * C) -> (B, K, D)."""
        if not is_weight_alone(self.proj, nn.Conv2d):
            p = self.patch_size
            embedded: Tensor = self.proj(patches.reshape(-1, p, p, self.in_chans).permute(0, 3, 1, 2))
            return embedded.view(*patches.shape[:2], -1)
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p * p * C)
        return F.linear(patches, weight, self.proj.bias)
