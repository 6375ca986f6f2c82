"""The architecture of a masked autoencoder, and options that several commands share.

Standard library only, so that costs and plans can be computed without importing torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

from mae.errors import ConfigError
from mae.options import brief, option

DEFAULT_MASK_RATIO = 0.75
MOST_PATCHES = 2**18  # per image: 8192x8192 pixels in patches of 16; the position tables alone take gigabytes
LAYER_NORM_EPS = 1e-6  # the released weights were trained with it; PyTorch's default is 1e-5


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    """Sizes of an asymmetric encoder-decoder (Paper: Section 3; sizes: Table 1 and Appendix A).

    Attributes:
        img_size: Image size in pixels, (rows, columns).
        patch_size: Side of a square patch in pixels.
        in_chans: Channels of an image.
        embed_dim, depth, num_heads: Encoder width, blocks and attention heads.
        decoder_embed_dim, decoder_depth, decoder_num_heads: Decoder width, blocks and attention heads.
        mlp_ratio: Hidden width of a block's MLP over the block's width.
        norm_pix_loss: Whether the target is each patch normalised by its own mean and std.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    in_chans: int = 3
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    norm_pix_loss: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type == "int" and getattr(self, field.name) < 1:
                raise ConfigError(f"{field.name} must be at least 1; got {getattr(self, field.name)}")
        rows, columns = self.img_size
        if rows < 1 or columns < 1 or rows % self.patch_size or columns % self.patch_size:
            near = tuple(max(1, round(side / self.patch_size)) * self.patch_size for side in self.img_size)
            raise ConfigError(
                f"an image of {format_size(self.img_size)} pixels is not a whole number of patches of "
                f"{self.patch_size}",
                hint=f"the nearest image size is {format_size((near[0], near[1]))}",
            )
        if self.num_patches > MOST_PATCHES:
            raise ConfigError(
                f"an image of {format_size(self.img_size)} pixels has {self.num_patches:,} patches of "
                f"{self.patch_size}; at most {MOST_PATCHES:,} can be held"
            )
        for width_name, heads_name in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            width, heads = getattr(self, width_name), getattr(self, heads_name)
            if width % heads:
                fewer = next(number for number in range(min(heads, 4096), 0, -1) if width % number == 0)
                raise ConfigError(
                    f"{width_name} {width} is not a multiple of {heads_name} {heads}",
                    hint=f"{heads_name} {fewer} would do",
                )
            if width % 4:
                raise ConfigError(
                    f"{width_name} must be a multiple of 4 for a 2-D sine-cosine position table; got {width}"
                )
            if not 1 <= width * self.mlp_ratio < math.inf:
                raise ConfigError(
                    f"mlp_ratio {self.mlp_ratio:g} times {width_name} {width} is not a possible hidden width of an MLP"
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Grid of patches, (rows, columns)."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """L, the number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """Values in one patch, p * p * C."""
        return self.patch_size**2 * self.in_chans

    def num_kept(self, mask_ratio: float) -> int:
        """K, the number of patches that stay visible.

        Raises:
            ConfigError: The ratio is outside [0, 1) or so high that no patch stays visible.
        """
        return num_kept(self.num_patches, mask_ratio)

    def differences(self, other: MAEConfig) -> tuple[tuple[str, Any, Any], ...]:
        """The fields in which two models differ: (name, this one's value, the other's)."""
        names = [field.name for field in dataclasses.fields(self)]
        values = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return tuple((name, own, others) for name, own, others in values if own != others)

    def replace(self, **changes: Any) -> MAEConfig:
        """A copy with some fields changed; ``img_size`` may be one number for a square.

        Raises:
            ConfigError: There is no such field, or the sizes are inconsistent.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(
                    f"a model has no {name}; there are {', '.join(known)}",
                    hint=f"did you mean {near[0]}?" if near else None,
                )
        if isinstance(changes.get("img_size"), int):
            changes["img_size"] = (changes["img_size"], changes["img_size"])
        return dataclasses.replace(self, **changes)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """``int(L * (1 - mask_ratio))``, as the official model counts (Paper: Section 3, "Masking").

    Raises:
        ConfigError: The ratio is outside [0, 1) or so high that no patch stays visible.
    """
    if not 0 <= mask_ratio < 1:
        raise ConfigError(f"the mask ratio must be at least 0 and below 1; got {mask_ratio:g}")
    kept = int(num_patches * (1 - mask_ratio))
    if kept < 1:
        raise ConfigError(
            f"a mask ratio of {mask_ratio:g} leaves none of {num_patches} patches visible",
            hint=f"use at most {_highest_ratio(num_patches):g}",
        )
    return kept


def _highest_ratio(num_patches: int) -> float:
    """The highest mask ratio of at most four decimals that leaves a patch visible."""
    ratios = (step / 10_000 for step in range(9_999, -1, -1))
    return next(ratio for ratio in ratios if num_patches * (1 - ratio) >= 1)


def format_size(size: tuple[int, int]) -> str:
    """(224, 320) -> "224x320": rows first, as everywhere."""
    return f"{size[0]}x{size[1]}"


def parse_size(value: Any) -> tuple[int, int]:
    """Read an image size: 224, "224", "224x320" or [224, 320]; rows first.

    Raises:
        ValueError: ``value`` has another form.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*[xX,]\s*(\d{1,9}))?\s*", value)
        sides = [int(side) for side in match.groups() if side] if match else []
    else:
        sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2 or not all(type(side) is int and 0 < side < 10**9 for side in sides):
        raise ValueError(f"wanted pixels as S or HxW, for instance 224 or 224x320; got {brief(value)}")
    return sides[0], sides[1]


_SHARED: dict[str, dict[str, Any]] = {
    "image_size": {
        "default": None,
        "help": "Image size in pixels, S or HxW (height first).",
        "parse": parse_size,
        "metavar": "S|HxW",
        "default_text": "the checkpoint's",
        "official": ("input_size",),
    },
    "patch_size": {"default": None, "help": "Patch size in pixels.", "low": 1, "default_text": "the variant's"},
    "num_heads": {
        "default": None,
        "help": "Attention heads of the encoder.",
        "low": 1,
        "default_text": "from the checkpoint or the width",
    },
    "max_unreadable": {
        "default": 0.1,
        "help": "Stop if more than this fraction of the images is unreadable.",
        "low": 0,
        "below": 1,
    },
    "workers": {
        "default": None,
        "help": "Number of processes that load and decode images.",
        "low": 0,
        "high": 1024,
        "default_text": "from the number of cores",
        "official": ("num_workers",),
    },
    "device": {
        "default": "auto",
        "help": "Where to compute; auto is the best available.",
        "choices": ("auto", "cuda", "mps", "cpu"),
    },
    "precision": {
        "default": "auto",
        "help": "Number format of the computation; auto is bf16 where it is faster (timed on a CPU), else fp32.",
        "choices": ("auto", "fp32", "bf16", "fp16"),
    },
    "offline": {"default": False, "help": "Never download anything.", "flags": "--offline"},
}


def shared_option(name: str, **changes: Any) -> Any:
    """An option that several commands share; ``changes`` replace its default, help or other properties."""
    return option(**(_SHARED[name] | changes))
