"""Every setting of a profile. Standard library only."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from mae.config import MAEConfig, shared_option
from mae.errors import ConfigError
from mae.models import VARIANTS, variant_config, variant_name
from mae.options import option
from mae.profiling.accelerators import ACCELERATORS, find_accelerator
from mae.system.environment import cpu_features
from mae.system.precision import choose_precision, processor_has_bf16

IMAGENET_IMAGES = 1_281_167
RECIPE_EPOCHS = 800
LEAST_MEMORY = 10**6  # bytes; a smaller --fit is a number without its unit

_MODEL = "Model"
_PLAN = "Plan"
_MEASURE = "Measure"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(value: Any) -> int:
    """Read an amount of memory: "24GB" (10^9), "24GiB" (2^30), "24G" or plain bytes.

    Raises:
        ValueError: Anything else, or less than ``LEAST_MEMORY``.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?I?)B?\s*", str(value).upper())
    amount = round(float(match[1]) * _UNITS[match[2]]) if match and match[2] in _UNITS else 0
    if amount < 1:
        raise ValueError(f"wanted memory as 24GB, 24GiB or bytes; got {value!r}")
    if amount < LEAST_MEMORY:
        raise ValueError(f"{value} is {amount:,} bytes, less than any model needs; for gigabytes write 24GB")
    return amount


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Settings of ``profile``."""

    variant: tuple[str, ...] = option(
        (),
        "vit_tiny, vit_small, vit_base, vit_large or vit_huge; repeat it to compare several.",
        default_text="all of them",
        panel=_MODEL,
        official=("model",),
    )
    image_size: tuple[int, int] = shared_option("image_size", default=(224, 224), default_text="224", panel=_MODEL)
    patch_size: int | None = shared_option("patch_size", panel=_MODEL)
    in_chans: int = option(3, "Input channels.", low=1, panel=_MODEL)
    mask_ratio: float = option(0.75, "Fraction of the patches that is masked.", above=0, below=1, panel=_MODEL)
    batch_size: int | None = option(
        None, "Images per batch, on one device.", low=1, default_text="64; 8 to measure on a CPU", panel=_MODEL
    )
    precision: str = shared_option(
        "precision",
        help="Number format; auto is bf16 if the --gpu, or this processor, supports it, else fp32; --measure times it.",
        panel=_MODEL,
    )
    device: str = shared_option(
        "device",
        help="Device to estimate for; auto is a GPU, or with --measure the best available here.",
        panel=_MODEL,
    )
    depth: int | None = option(None, "Also list parameters and FLOPs by module, this many levels deep.", low=1)
    fit: int | None = option(
        None,
        "Find the largest batch that fits in this memory.",
        parse=parse_bytes,
        metavar="24GB",
        default_text="the memory of --gpu",
    )

    gpu: str | None = option(None, f"Estimate a run on this accelerator: {', '.join(ACCELERATORS)}.", panel=_PLAN)
    gpus: int = option(1, "Number of accelerators.", low=1, panel=_PLAN, official=("world_size",))
    images: int = option(IMAGENET_IMAGES, "Number of images in the data set.", low=1, panel=_PLAN)
    epochs: int = option(RECIPE_EPOCHS, "Number of epochs.", low=1, panel=_PLAN)
    mfu: float = option(
        0.3,
        "Assumed model FLOPs utilisation: the fraction of the peak rate that training reaches.",
        above=0,
        high=1,
        panel=_PLAN,
    )
    price: float | None = option(None, "Price of one accelerator per hour, in any currency.", low=0, panel=_PLAN)

    measure: bool = option(False, "Measure time and peak memory on this machine.", flags="--measure", panel=_MEASURE)
    repeats: int = option(
        5,
        "Minimum number of timed repeats after the warm-up; fast operations are repeated more often.",
        low=2,
        panel=_MEASURE,
    )
    csv: bool = option(False, "Print one line of comma-separated values per variant.", flags="--csv")

    def __post_init__(self) -> None:
        for name, model in self.models():
            kept = model.num_kept(self.mask_ratio)
            if kept == model.num_patches:
                raise ConfigError(
                    f"--mask-ratio {self.mask_ratio:g} masks none of the {kept} patches of {name}",
                    hint="the encoder without a mask is part of every profile",
                )
        precision = self.assumed_precision
        if self.gpu is not None and self.device in ("cpu", "mps") and not self.measure:
            raise ConfigError(
                f"--gpu {self.gpu} and --device {self.device}: the plan is for the one and the figures for the other",
                hint="drop one of them; --measure measures this machine beside the plan",
            )
        if self.gpu is not None:
            find_accelerator(self.gpu).peak_flops(precision)
        elif self.price is not None and not self.measure:
            raise ConfigError("--price needs --gpu or --measure: without them the hours are unknown")

    def models(self) -> tuple[tuple[str, MAEConfig], ...]:
        """Names and sizes of the given variants, each once; by default all whose patch size divides the image size.

        Raises:
            ConfigError: An unknown name, or images that no patch size divides.
        """
        fitting, misfits = self._sort_out()
        if misfits and (self.variant or not fitting):
            raise next(iter(misfits.values()))
        return tuple(fitting.items())

    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Variants that were not named and whose patches do not divide the image, with the reason."""
        return tuple((name, error.message) for name, error in self._sort_out()[1].items())

    def _sort_out(self) -> tuple[dict[str, MAEConfig], dict[str, ConfigError]]:
        changes = {} if self.patch_size is None else {"patch_size": self.patch_size}
        fitting: dict[str, MAEConfig] = {}
        misfits: dict[str, ConfigError] = {}
        for name in [variant_name(name) for name in self.variant] or VARIANTS:
            try:
                fitting[name] = variant_config(name, img_size=self.image_size, in_chans=self.in_chans, **changes)
            except ConfigError as error:
                misfits[name] = error
        return fitting, misfits

    @property
    def assumed_device(self) -> str:
        """Device that the numbers are for, if nothing is measured."""
        return "cuda" if self.device == "auto" else self.device

    @property
    def assumed_precision(self) -> str:
        """Precision that ``auto`` stands for, if nothing is measured."""
        return choose_precision(self.precision, self.assumed_device, native_bf16=self._native_bf16)

    @property
    def _native_bf16(self) -> bool:
        """Whether the planned device computes in bf16; assumed for unnamed GPUs."""
        if self.gpu is not None:
            return find_accelerator(self.gpu).bf16 is not None
        return processor_has_bf16(cpu_features()) if self.assumed_device == "cpu" else self.assumed_device == "cuda"
