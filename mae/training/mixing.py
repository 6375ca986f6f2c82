"""Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019) and drop path (Huang et al. 2016), seeded by batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mae.system.seeding import derive_seed


class Mix(NamedTuple):
    """How the images of a batch are mixed, each with its neighbour.

    Attributes:
        keep: (rows, columns), weight of an image's own pixel; its neighbour's pixel has the remaining weight.
        share: Scalar, weight of an image's own label; its neighbour's label has the remaining weight.
    """

    keep: Tensor
    share: Tensor


def draw_mix(
    size: tuple[int, int], seed: int, *place: int | str, mixup: float, cutmix: float, prob: float, switch_prob: float
) -> Mix:
    """Draw whether a batch is mixed, by mixup or CutMix, and with which weights.

    With mixup each pixel keeps ``lam``, drawn from Beta(alpha, alpha). With CutMix a rectangle with about 1 - lam of
    the area comes from the neighbour; it may extend beyond the image, so the label weights follow its visible part.

    Args:
        size: (rows, columns) of an image.
        seed, place: Seed of the random numbers: the run's seed and the position of the batch.
        mixup, cutmix: Alpha of the Beta distribution of each; 0 disables it.
        prob: Probability that a batch is mixed.
        switch_prob: Probability of CutMix where both are on.
    """
    rows, columns = size
    draw = np.random.Generator(np.random.PCG64(derive_seed(seed, *place)))
    keep = torch.ones(rows, columns)
    mixed, cuts = draw.random() < prob, draw.random() < switch_prob
    if not mixed or mixup == cutmix == 0:
        return Mix(keep, torch.ones(()))
    if mixup == 0 or (cutmix > 0 and cuts):
        lam = draw.beta(cutmix, cutmix)
        side = (1 - lam) ** 0.5
        height, width = int(rows * side), int(columns * side)
        row, column = int(draw.integers(rows)), int(draw.integers(columns))
        top, left = max(0, row - height // 2), max(0, column - width // 2)
        keep[top : min(rows, row + height // 2), left : min(columns, column + width // 2)] = 0
        return Mix(keep, keep.mean())
    share = torch.tensor(draw.beta(mixup, mixup), dtype=torch.float32)
    return Mix(keep * share, share)


def mix_images(imgs: Tensor, mix: Mix) -> Tensor:
    """(B, C, H, W) -> the same shape: each image mixed with its neighbour by the weights ``mix.keep``."""
    return imgs * mix.keep + swap_neighbours(imgs) * (1 - mix.keep)


def targets(labels: Tensor, classes: int, smoothing: float, share: Tensor) -> Tensor:
    """(B,) -> (B, classes): smoothed one-hot labels, each mixed with its neighbour's by the weight ``share``."""
    own = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
    return own * share + swap_neighbours(own) * (1 - share)


def swap_neighbours(batch: Tensor) -> Tensor:
    """Exchange images 0 and 1, 2 and 3, ...; the last of an odd number stays.

    In a shuffled batch any pairing is valid. This one needs no data of other processes, and if each process has an
    even number of images, the pairs do not depend on the number of processes.
    """
    even = len(batch) // 2 * 2
    swapped = batch[:even].reshape(-1, 2, *batch.shape[1:]).flip(1).flatten(0, 1)
    return torch.cat([swapped, batch[even:]])


def drop_path_scales(rate: float, images: int, depth: int, generator: torch.Generator) -> Tensor | None:
    """(B, depth, 2): factor of each image's residual branches: 0 if dropped, else 1 / (probability of keeping it).

    The probability of dropping rises linearly from 0 in the first block to ``rate`` in the last.

    Returns:
        The factors; None if ``rate`` is 0.
    """
    if rate == 0:
        return None
    kept = 1 - torch.linspace(0, rate, depth)[None, :, None]
    return (torch.rand(images, depth, 2, generator=generator) < kept).float() / kept
