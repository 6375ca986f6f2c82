"""Random masking: the choice of the visible patches (Paper: Section 3, "Masking")."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mae.config import num_kept


class Masking(NamedTuple):
    """The masks of a batch: visible and masked patches of every image.

    Attributes:
        ids_keep: (B, K) positions of the visible patches, in the order of the encoder's input.
        ids_masked: (B, L - K) positions of the masked patches.
        ids_restore: (B, L) index in [kept | masked] of each position of the image.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor

    @property
    def mask(self) -> Tensor:
        """(B, L) float, 1 = masked, 0 = kept: the official model's mask."""
        return (self.ids_restore >= self.ids_keep.shape[1]).float()


def random_masking(noise: Tensor, mask_ratio: float) -> Masking:
    """Keep the ``int(L * (1 - mask_ratio))`` patches of lowest noise of each image.

    Args:
        noise: (B, L), any floating type; with uniform noise, patches are sampled uniformly without replacement.
        mask_ratio: Fraction of the patches that is masked, in [0, 1).

    Raises:
        ValueError: ``noise`` is not (B, L).
        ConfigError: The ratio is out of range or leaves no patch.
    """
    if noise.ndim != 2:
        raise ValueError(f"noise must be (B, L); got {tuple(noise.shape)}")
    return masking_from_order(noise, num_kept(noise.shape[1], mask_ratio))


def masking_from_order(order: Tensor, kept: int) -> Masking:
    """Keep the ``kept`` patches with the lowest values of ``order`` (B, L); ties in reading order."""
    ids_shuffle = torch.argsort(order, dim=1, stable=True)
    ids_restore = torch.argsort(ids_shuffle, dim=1)
    return Masking(ids_shuffle[:, :kept], ids_shuffle[:, kept:], ids_restore)


def take_patches(x: Tensor, ids: Tensor) -> Tensor:
    """Gather the tokens at ``ids`` of each image: (B, L, D), (B, K) -> (B, K, D)."""
    return x.gather(1, ids.unsqueeze(-1).expand(-1, -1, x.shape[2]))
