"""Conversion between 8-bit pixels and the model's normalised input."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST_SHAPE = 64  # largest aspect ratio of a frame, whose longer side is then 8 times that of a square of equal area


def crop_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale an image until it just covers ``size`` (rows, columns), then crop the centre."""
    rows, columns = size
    scale = max(columns / image.width, rows / image.height)
    # The part of the image that stays; resampling it alone scales both axes equally.
    width, height = min(columns / scale, image.width), min(rows / scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)


def whole_size(image: Image.Image, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """A size (rows, columns) in whole patches with about the area of ``size`` and the image's aspect ratio.

    The aspect ratio is limited to ``LONGEST_SHAPE``.
    """
    width = min(image.width, LONGEST_SHAPE * image.height)
    height = min(image.height, LONGEST_SHAPE * image.width)
    scale = (size[0] * size[1] / (width * height)) ** 0.5
    rows = max(1, round(height * scale / patch_size)) * patch_size
    columns = max(1, round(width * scale / patch_size)) * patch_size
    return rows, columns


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# For other numbers of channels: the averages over the three colours.
ONE_MEAN, ONE_STD = 0.449, 0.226


def channel_statistics(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of each channel, for pixels from 0 to 1: those of ImageNet for three channels."""
    return (IMAGENET_MEAN, IMAGENET_STD) if in_chans == 3 else ((ONE_MEAN,) * in_chans, (ONE_STD,) * in_chans)


def pixel_statistics(in_chans: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and std of each channel, for pixels from 0 to 1, each (C, 1, 1), float32.

    They are created on the device: a copy from the host would make it wait for the accelerator at every batch. They are
    not cached between calls, so tensors of different modes (fake, meta, inference) are not mixed.
    """
    mean, std = channel_statistics(in_chans)
    return _per_channel(mean, device), _per_channel(std, device)


def image_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 (C, H, W)."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()


def tensor_to_image(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) from 0 to 1 -> a PIL image, clipped and rounded to 8 bits."""
    array = to_8_bits(pixels).permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def to_8_bits(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 1 -> uint8, clipped and rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def normalise(imgs: Tensor) -> Tensor:
    """uint8 (..., C, H, W) -> float32, (pixels / 255 - mean) / std per channel, on the same device."""
    mean, std = pixel_statistics(imgs.shape[-3], imgs.device)
    # In place, because allocating memory for a batch takes longer than the arithmetic.
    return imgs.float().div_(255).sub_(mean).div_(std)


def denormalise(imgs: Tensor) -> Tensor:
    """The inverse of ``normalise``: pixels from 0 to 1, not clipped."""
    mean, std = pixel_statistics(imgs.shape[-3], imgs.device)
    return imgs * std + mean


def _per_channel(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    filled = [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
    return torch.stack(filled)
