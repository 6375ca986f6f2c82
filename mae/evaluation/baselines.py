"""Baselines: raw and whitened pixels (the untrained encoder is in ``frozen``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.config import format_size
from mae.data.transforms import normalise

LARGEST_SIDE = 16  # cells; 768 values for RGB, with which no probe on CIFAR-10 is worse than with all 32 x 32 pixels


class PixelExtractor:
    """Pixels as features: the normalised image, averaged over a grid of at most 16 x 16 cells.

    Args:
        image_size: Size to which images are resized and cropped, (rows, columns).
        in_chans: C, number of channels.
    """

    def __init__(self, image_size: tuple[int, int], in_chans: int) -> None:
        rows, columns = image_size
        shrink = max(1.0, max(rows, columns) / LARGEST_SIDE)
        self.size = max(1, round(rows / shrink)), max(1, round(columns / shrink))
        self.in_chans = in_chans
        self.name = f"pixels, {format_size(self.size)}"

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that the features depend on, except the images and their size."""
        return {"pixels": list(self.size), "in_chans": self.in_chans}

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one image."""
        return 4 * self.in_chans * self.size[0] * self.size[1]

    def arrays(self, imgs: Tensor, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Images (B, C, H, W) uint8 -> "pixels", (B, C * rows * columns) of the grid."""
        if not len(imgs):
            return {"pixels": np.empty((0, self.row_bytes // 4), np.float32)}
        return {"pixels": F.adaptive_avg_pool2d(normalise(imgs), self.size).flatten(1).numpy()}


def whiten(train: Tensor, test: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Project features on the first principal components of the training images, and divide each by its std.

    Args:
        train, test: Features, (N, D) and (M, D).
        components: Maximum number of components.

    Returns:
        (N, R) and (M, R), where R is ``components``, or the number of components with non-zero variance if smaller;
        if none has, the training images are equal, and the components are not divided.
    """
    mean = train.mean(dim=0)
    centred = (train - mean).double()
    values, axes = torch.linalg.eigh(centred.T @ centred / len(train))
    values, axes = values.flip(0)[:components], axes.flip(1)[:, :components]
    there = values >= values[0] * 1e-9
    axes = (axes / torch.where(values > 0, values, 1).sqrt())[:, there].to(train.dtype)
    return (train - mean) @ axes, (test - mean) @ axes
