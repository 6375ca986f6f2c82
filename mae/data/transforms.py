"""Between 8-bit pixels and the normalised values that the model sees."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LONGEST_SHAPE = 64  # times as long as wide; a frame of that shape has eight times the length of the square's side


def crop_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale until the image just covers ``size`` (rows, columns), then cut off what is over, evenly."""
    rows, columns = size
    scale = max(columns / image.width, rows / image.height)
    # The part of the image that will be seen; resampling from it scales both axes alike.
    width, height = min(columns / scale, image.width), min(rows / scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)


def whole_size(image: Image.Image, size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The frame (rows, columns) in whole patches that has about the area of ``size`` and the image's shape.

    An image of one row and thousands of columns gets the frame of one that is ``LONGEST_SHAPE`` times as long as wide.
    """
    width = min(image.width, LONGEST_SHAPE * image.height)
    height = min(image.height, LONGEST_SHAPE * image.width)
    scale = (size[0] * size[1] / (width * height)) ** 0.5
    rows = max(1, round(height * scale / patch_size)) * patch_size
    columns = max(1, round(width * scale / patch_size)) * patch_size
    return rows, columns


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# For any other number of channels: the averages of the three colours'.
ONE_MEAN, ONE_STD = 0.449, 0.226


def channel_statistics(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel on a scale of 0 to 1: ImageNet's for three channels."""
    return (IMAGENET_MEAN, IMAGENET_STD) if in_chans == 3 else ((ONE_MEAN,) * in_chans, (ONE_STD,) * in_chans)


def pixel_statistics(in_chans: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Mean and std per channel on a scale of 0 to 1, each (C, 1, 1), float32.

    Filled in on the device: copied from the host, they would have the host wait for the accelerator at every batch.
    Nothing is kept between calls, so fake, meta and inference tensors never meet those of another mode.
    """
    mean, std = channel_statistics(in_chans)
    return _per_channel(mean, device), _per_channel(std, device)


def image_to_tensor(image: Image.Image) -> Tensor:
    """A PIL image as uint8 (C, H, W)."""
    array = np.array(image, dtype=np.uint8)
    return torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()


def tensor_to_image(pixels: Tensor) -> Image.Image:
    """Pixels (C, H, W) on a scale of 0 to 1 as a PIL image, clipped and rounded to 8 bits."""
    array = to_8_bits(pixels).permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def to_8_bits(pixels: Tensor) -> Tensor:
    """Pixels on a scale of 0 to 1 as uint8, clipped and rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def normalise(imgs: Tensor) -> Tensor:
    """uint8 (..., C, H, W) -> float32 with the data set's mean 0 and std 1, on the same device."""
    mean, std = pixel_statistics(imgs.shape[-3], imgs.device)
    # In place: a batch is large, and fresh memory costs more than the arithmetic.
    return imgs.float().div_(255).sub_(mean).div_(std)


def denormalise(imgs: Tensor) -> Tensor:
    """The inverse of ``normalise``, on a scale of 0 to 1, not clipped."""
    mean, std = pixel_statistics(imgs.shape[-3], imgs.device)
    return imgs * std + mean


def _per_channel(values: tuple[float, ...], device: torch.device | str) -> Tensor:
    filled = [torch.full((1, 1), value, dtype=torch.float32, device=device) for value in values]
    return torch.stack(filled)
