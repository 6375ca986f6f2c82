"""The image transform of a model as one object: from any image to the model's input, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae.config import MAEConfig
from mae.data.decoding.channels import MODES
from mae.data.decoding.in_memory import to_image, to_pixels
from mae.data.eval_transform import EvalTransform
from mae.data.transforms import channel_statistics, denormalise, normalise, to_8_bits


class HasConfig(Protocol):
    """A model with a config, which gives the size and channels of its images."""

    config: MAEConfig


class ImageTransform:
    """Preprocess images for a model as in the official evaluation and in ``embed``.

    Steps: decode upright with the model's channels, scale (bicubic), crop the centre, normalise.

    Args:
        config: The model's sizes.
        crop_pct: Share of each side that is kept; None for the official rule: 224/256 up to 224 pixels, 1 above.

    Attributes:
        size: The model's image size in pixels, (rows, columns).
        in_chans: C, the model's channels.
        mean, std: Mean and std of each channel, for pixels from 0 to 1.
    """

    def __init__(self, config: MAEConfig, crop_pct: float | None = None) -> None:
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1; got {crop_pct}")
        self.size = config.img_size
        self.in_chans = config.in_chans
        self.mean, self.std = channel_statistics(config.in_chans)
        self._framed = EvalTransform(config.img_size, crop_pct)

    @property
    def crop_pct(self) -> float:
        """Fraction of each side that is kept."""
        return self._framed.crop_pct

    def __call__(self, image: Any) -> Tensor:
        """One image -> (C, rows, columns), float32.

        Args:
            image: A path, a PIL image, a uint8 array (H, W) or (H, W, C), or a uint8 tensor (C, H, W). A tensor of
                floats with the model's shape counts as normalised and is returned unchanged.

        Raises:
            TypeError, ValueError: It is something else, or of another shape.
            DataError: It cannot be read as an image.
        """
        if isinstance(image, Tensor) and image.is_floating_point() and image.shape == (self.in_chans, *self.size):
            return image
        return normalise(self.pixels(image))

    def pixels(self, image: Any) -> Tensor:
        """One image, scaled and cropped but not normalised -> uint8 (C, rows, columns)."""
        if not isinstance(image, str | Path | Image.Image):
            pixels = to_pixels(image)
            if pixels.shape == (self.in_chans, *self.size):  # a tensor may have any number of channels
                return pixels
        if self.in_chans not in MODES:
            raise ValueError(
                f"an image file has 1 to 4 channels; for {self.in_chans} give a uint8 tensor "
                f"{(self.in_chans, *self.size)}"
            )
        return self._framed(to_image(image, self.in_chans))

    def batch(self, images: Any) -> Tensor:
        """One image or many -> (B, C, rows, columns), float32.

        Args:
            images: A list of what ``__call__`` takes, one of it, or uint8 in an array (B, H, W, C) or a tensor
                (B, C, H, W).

        Raises:
            TypeError, ValueError, DataError: As ``__call__``; or there is no image.
        """
        many = isinstance(images, list | tuple) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 4)
        transformed = [self(image) for image in (images if many else [images])]
        if not transformed:
            raise ValueError("wanted one image or more; got none")
        return torch.stack(transformed)

    def invert(self, imgs: Tensor) -> Tensor:
        """(..., C, H, W) normalised -> uint8 pixels of the same shape, clipped and rounded."""
        return to_8_bits(denormalise(imgs))

    def __repr__(self) -> str:
        return (
            f"ImageTransform(size={self.size}, in_chans={self.in_chans}, crop_pct={self.crop_pct:g}, "
            f"mean={self.mean}, std={self.std})"
        )


def transforms(model: HasConfig | MAEConfig, *, crop_pct: float | None = None) -> ImageTransform:
    """The image transform of a model: ``mae.transforms(model)(image)`` -> (C, rows, columns).

    Args:
        model: The model, or its ``MAEConfig``.
        crop_pct: Share of each side that is kept; None for the official rule: 224/256 up to 224 pixels, 1 above.

    Raises:
        TypeError: ``model`` is neither.
    """
    config = model if isinstance(model, MAEConfig) else getattr(model, "config", None)
    if not isinstance(config, MAEConfig):
        raise TypeError(f"wanted a model of mae, or its MAEConfig; got {type(model).__name__}")
    return ImageTransform(config, crop_pct)
