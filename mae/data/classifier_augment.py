"""The official augmentation of fine-tuning: a crop, a flip, RandAugment, and random erasing after normalising."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae.data.augment import Augmentation, FullImage, JpegImage
from mae.data.decoding.channels import MODES
from mae.data.transforms import channel_statistics, normalise
from mae.errors import ConfigError
from mae.system.seeding import derive_seed

_POLICY = re.compile(r"rand(-(m\d+|n\d+|mstd\d+(\.\d+)?|mmax\d+|inc[01]|p\d+(\.\d+)?))*")
_TRANSLATE = 0.45  # largest shift as a fraction of the shorter side
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_RATIO = 0.3  # smallest aspect ratio of the erased rectangle; the largest is its inverse


def resolve_augmenter(name: str) -> str:
    """Resolve "auto" to "timm" if it is installed, else "torchvision".

    Raises:
        ConfigError: ``name`` is "timm", and timm is not installed.
    """
    there = importlib.util.find_spec("timm") is not None
    if name == "timm" and not there:
        raise ConfigError(
            "--augmenter timm: timm is not installed",
            hint="pip install 'maecli[finetune]' brings it; --augmenter torchvision starts a run without it",
        )
    return name if name != "auto" else "timm" if there else "torchvision"


def check_policy(policy: str, in_chans: int) -> None:
    """Check a RandAugment policy.

    Raises:
        ConfigError: The policy is not a RandAugment policy, or the images do not have three channels.
    """
    if policy == "none":
        return
    if not _POLICY.fullmatch(policy):
        raise ConfigError(
            f"--aa {policy}: wanted a RandAugment policy such as rand-m9-mstd0.5-inc1, or none",
            hint="m is the magnitude up to 10, n how many operations, mstd the magnitude's std, inc1 stronger with m",
        )
    if in_chans != 3:
        raise ConfigError(
            f"--aa {policy} is for images of 3 channels; the model has {in_chans}", hint="--aa none turns it off"
        )


@dataclasses.dataclass
class ClassifierAugmentation(Augmentation):
    """``Augmentation``, then RandAugment, and random erasing with normal noise in normalised images.

    Attributes:
        policy: RandAugment policy in timm's notation, or "none".
        reprob: Probability of erasing a rectangle; if it is above 0, the returned images are normalised, float32.
        augmenter: "timm" or "torchvision"; from ``resolve_augmenter``.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    policy: str = "none"
    reprob: float = 0.0
    augmenter: str = "torchvision"
    _rand_augment: Callable[[Any], Any] | None = dataclasses.field(default=None, init=False, repr=False)
    _erase: Callable[[Tensor], Tensor] | None = dataclasses.field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the augmenters, which each loader process makes for itself."""
        return self.__dict__ | {"_rand_augment": None, "_erase": None}

    def crop(self, image: JpegImage | FullImage, seed: int) -> Tensor:
        """Crop and augment, seeded by ``seed``; (rows, columns, C), uint8, or float32 if ``reprob`` > 0."""
        crop = super().crop(image, seed)
        if self.policy == "none" and self.reprob == 0:
            return crop
        with _lent_seed(derive_seed(seed, "operations")):
            if self.policy != "none":
                crop = self._changed(crop)
            if self.reprob > 0:
                self._erase = self._erase or _make_erasing(self.augmenter, self.reprob)
                crop = self._erase(normalise(crop.permute(2, 0, 1))).permute(1, 2, 0)
        return crop

    def _changed(self, crop: Tensor) -> Tensor:
        make = _make_timm if self.augmenter == "timm" else _make_torchvision
        self._rand_augment = self._rand_augment or make(self.policy, self.image_size)
        image = Image.fromarray(crop.contiguous().numpy(), MODES[3])
        return torch.from_numpy(np.array(self._rand_augment(image)))

    def __str__(self) -> str:
        parts = [f"crops of {self.crop_scale[0]:.0%} to {self.crop_scale[1]:.0%} of the area"]
        parts += ["flips"] if self.hflip else []
        whose = self.augmenter
        if self.policy != "none" or self.reprob > 0:
            whose = f"{self.augmenter} {importlib.metadata.version(self.augmenter)}"
        if self.policy != "none":
            about = "" if self.augmenter == "timm" else " without varying magnitudes"
            parts.append(f"RandAugment {self.policy} by {whose}{about}")
        if self.reprob > 0:
            parts.append(f"random erasing of {self.reprob:.0%} of the images by {whose}")
        return ", ".join(parts)


def _make_timm(policy: str, image_size: tuple[int, int]) -> Callable[[Any], Any]:
    """RandAugment of timm, with the arguments that timm's ``create_transform`` uses for bicubic training crops."""
    from timm.data.auto_augment import rand_augment_transform

    mean = channel_statistics(3)[0]
    settings = {
        "translate_const": int(min(image_size) * _TRANSLATE),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    made: Any = rand_augment_transform(policy, settings)
    for operation in made.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterizing(operation.aug_fn)
    randomly: Callable[[Any], Any] = made
    return randomly


def _posterizing(posterize: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    """Timm's posterize; 0 bits, which strong magnitudes lead to and new releases of Pillow refuse, give black."""

    def applied(image: Image.Image, bits: int, **settings: Any) -> Image.Image:
        return posterize(image, bits, **settings) if bits > 0 else Image.new(image.mode, image.size)

    return applied


def _make_torchvision(policy: str, image_size: tuple[int, int]) -> Callable[[Any], Any]:
    """RandAugment of torchvision with the policy's number of operations and magnitude, which does not vary by image."""
    from torchvision.transforms import v2

    words = policy.split("-")[1:]
    numbers = {kind: float(word[1:]) for word in words for kind in "mn" if re.fullmatch(rf"{kind}\d+(\.\d+)?", word)}
    fill = [round(255 * value) for value in channel_statistics(3)[0]]
    made: Callable[[Any], Any] = v2.RandAugment(
        num_ops=int(numbers.get("n", 2)),
        # torchvision has 31 magnitude steps, timm 10; timm takes a higher magnitude for 10.
        magnitude=round(min(numbers.get("m", 10), 10) * 3),
        num_magnitude_bins=31,
        interpolation=v2.InterpolationMode.BICUBIC,
        fill=fill,
    )
    return made


def _make_erasing(augmenter: str, reprob: float) -> Callable[[Tensor], Tensor]:
    made: Callable[[Tensor], Tensor]
    if augmenter == "timm":
        from timm.data.random_erasing import RandomErasing

        make: Any = RandomErasing
        made = make(reprob, mode="pixel", max_count=1, num_splits=0, device="cpu")
        return made
    from torchvision.transforms import v2

    made = v2.RandomErasing(reprob, _ERASED_AREA, (_ERASED_RATIO, 1 / _ERASED_RATIO), value="random")
    return made


@contextmanager
def _lent_seed(seed: int) -> Iterator[None]:
    """Seed the global generators that timm and torchvision use, and restore their states afterwards."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
