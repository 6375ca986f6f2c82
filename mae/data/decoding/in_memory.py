"""Images in memory, given by callers of the library: PIL images, arrays and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae.data.decoding.channels import MODES
from mae.data.decoding.image import load_image, upright_image
from mae.data.transforms import denormalise, to_8_bits

WANTED = (
    "a path, a PIL image, a uint8 array (H, W) or (H, W, C), or a tensor (C, H, W), uint8 or normalised as by "
    "mae.transforms(model)"
)


def to_image(given: Any, in_chans: int, name: str | Path = "the image") -> Image.Image:
    """Convert one image, given as a path or in memory, as ``decode_image`` would.

    Args:
        given: A path, or one of the types that ``WANTED`` lists.
        in_chans: 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA).
        name: Name of the image in messages.

    Raises:
        TypeError, ValueError: It is something else, or of another shape.
        DataError: It cannot be read as an image.
        ConfigError: Image files cannot have this number of channels.
    """
    if isinstance(given, str | Path):
        return load_image(Path(given), in_chans)
    if isinstance(given, Image.Image):
        return upright_image(given, name, in_chans)
    pixels = to_pixels(given, name)
    if pixels.shape[0] not in MODES:
        raise ValueError(
            f"{name}: an image has 1 to 4 channels, in a tensor before rows and columns, in an array after "
            f"them; got {_described(given)}"
        )
    array = pixels.permute(1, 2, 0).numpy()
    return upright_image(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), name, in_chans)


def to_pixels(given: Any, name: str | Path = "the image") -> Tensor:
    """An array or a tensor of one image as uint8 (C, H, W), on the CPU.

    Raises:
        TypeError, ValueError: It is something else, or of another shape.
    """
    if isinstance(given, Tensor):
        pixels = given.detach().cpu()
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.is_floating_point() and pixels.ndim == 3:
            pixels = to_8_bits(denormalise(_check_normalised(pixels, name)))
    elif isinstance(given, np.ndarray):
        array = given[:, :, None] if given.ndim == 2 else given
        if array.dtype != np.uint8 or array.ndim != 3:
            raise _not_wanted(given, name)
        pixels = torch.from_numpy(np.array(array)).permute(2, 0, 1)  # a copy, since arrays of PIL images are read-only
    else:
        raise _not_wanted(given, name)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or not pixels.numel():
        raise _not_wanted(given, name)
    return pixels


def _check_normalised(imgs: Tensor, name: str | Path) -> Tensor:
    if imgs.numel() and imgs.min() >= 0 and imgs.max() <= 1:
        raise ValueError(
            f"{name}: floats from 0 to 1 are not normalised; give pixels, (255 * x).round().to(torch.uint8), "
            "or what mae.transforms(model) makes of them"
        )
    return imgs


def _not_wanted(given: Any, name: str | Path) -> Exception:
    kind = ValueError if getattr(given, "dtype", None) in (np.uint8, torch.uint8) else TypeError
    return kind(f"{name}: wanted {WANTED}; got {_described(given)}")


def _described(given: Any) -> str:
    """The type of an object, and of an array also its dtype and shape."""
    words = [type(given).__name__]
    if isinstance(given, np.ndarray | Tensor):
        words += [f"of {str(given.dtype).removeprefix('torch.')}", str(tuple(given.shape))]
    return " ".join(words)
