"""Derives a model's sizes from the shapes of its tensors. Imports no torch.

The number of heads does not affect the shapes: it comes from the file's metadata, from a variant of the same
width, or from the usual head width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mae.config import MAEConfig
from mae.errors import CheckpointError, ConfigError
from mae.models import VARIANTS

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

HEAD_WIDTH = 64
DECODER_HEAD_WIDTH = 32
MOST_BLOCKS = 512


@dataclasses.dataclass(frozen=True)
class Declared:
    """Sizes that a file states explicitly; None if it does not.

    Attributes:
        grid: Grid of patches, (rows, columns), by a position table that follows the sine-cosine formula.
    """

    img_size: tuple[int, int] | None = None
    num_heads: int | None = None
    decoder_num_heads: int | None = None
    norm_pix_loss: bool | None = None
    grid: tuple[int, int] | None = None


class ReadSizes(NamedTuple):
    """A model's sizes as derived from its tensors.

    Attributes:
        config: The sizes; decoder sizes are the defaults if there is no decoder.
        notes: Messages for the user about assumed sizes.
        assumed: Fields that were assumed because the file does not give them: "num_heads", "decoder_num_heads".
    """

    config: MAEConfig
    notes: tuple[str, ...]
    assumed: tuple[str, ...]


def config_from_shapes(shapes: Shapes, declared: Declared) -> ReadSizes:
    """Compute the sizes of the model of a state dict with official names.

    Widths are decided by the majority of the tensors, so a single missing or misshapen tensor does not matter.

    Raises:
        CheckpointError: There is no patch projection or no block, or the sizes contradict each other.
    """
    notes: list[str] = []
    assumed: list[str] = []
    embed_dim = _majority(
        [_last(shapes, "cls_token"), _last(shapes, "pos_embed"), _last(shapes, "patch_embed.proj.bias")]
        + [shape[-1] for key, shape in shapes.items() if re.match(r"blocks\.\d+\.norm\d\.", key) and shape]
    )
    if embed_dim is None:
        raise CheckpointError("no tensor of the file gives the encoder's width")
    decoder_dim = _majority(
        [_last(shapes, "mask_token"), _last(shapes, "decoder_pos_embed"), _last(shapes, "decoder_embed.bias")]
        + [shape[-1] for key, shape in shapes.items() if re.match(r"decoder_blocks\.\d+\.norm\d\.", key) and shape]
    )
    patch_size, in_chans = _patch(shapes)
    depth, decoder_depth = _depth(shapes, "blocks."), _depth(shapes, "decoder_blocks.")
    if depth == 0:
        raise CheckpointError("the file holds no encoder block")
    usual = MAEConfig()
    sizes: dict[str, Any] = {
        "img_size": declared.img_size or _img_size(shapes, patch_size, declared.grid, notes),
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": declared.num_heads or _heads("num_heads", embed_dim, depth, notes, assumed),
        "decoder_embed_dim": decoder_dim or usual.decoder_embed_dim,
        "decoder_depth": decoder_depth if decoder_dim else usual.decoder_depth,
        "mlp_ratio": _mlp_ratio(shapes, embed_dim),
        "norm_pix_loss": bool(declared.norm_pix_loss),
    }
    sizes["decoder_num_heads"] = (
        declared.decoder_num_heads or _heads("decoder_num_heads", decoder_dim, decoder_depth, notes, assumed)
        if decoder_dim
        else usual.decoder_num_heads  # the declared number would belong to another width
    )
    try:
        config = MAEConfig(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"the sizes do not fit together: {error.message}", hint=error.hint) from None
    _refuse_vast(config, sum(math.prod(shape) for shape in shapes.values()), has_decoder=decoder_dim is not None)
    return ReadSizes(config, tuple(notes), tuple(assumed))


def _refuse_vast(config: MAEConfig, numbers: int, *, has_decoder: bool) -> None:
    """Refuse sizes that do not fit into memory: a few small tensors can imply a huge model."""
    if max(config.depth, config.decoder_depth) > MOST_BLOCKS:
        raise CheckpointError(
            f"the tensor names describe {max(config.depth, config.decoder_depth):,} blocks; {MOST_BLOCKS} can be read"
        )
    width = config.embed_dim + (config.decoder_embed_dim if has_decoder else 0)
    if (1 + config.num_patches) * width > numbers:
        raise CheckpointError(
            f"images of {config.img_size[0]}x{config.img_size[1]} pixels need position tables of "
            f"{(1 + config.num_patches) * width:,} numbers; the whole file holds {numbers:,}"
        )


def variant_of(config: MAEConfig, *, has_decoder: bool = True) -> str | None:
    """Name of the variant with these widths, depths, heads and patch size, for any image size; None if none fits."""
    for name, variant in VARIANTS.items():
        like = (
            variant.replace(img_size=config.img_size, in_chans=config.in_chans, norm_pix_loss=config.norm_pix_loss)
            if config.patch_size == variant.patch_size
            else variant
        )
        if not has_decoder:
            like = like.replace(
                decoder_embed_dim=config.decoder_embed_dim,
                decoder_depth=config.decoder_depth,
                decoder_num_heads=config.decoder_num_heads,
            )
        if like == config:
            return name
    return None


def _majority(widths: Iterable[int | None]) -> int | None:
    counted = Counter(width for width in widths if width)
    return counted.most_common(1)[0][0] if counted else None


def _last(shapes: Shapes, key: str) -> int | None:
    return shapes[key][-1] if shapes.get(key) else None


def _depth(shapes: Shapes, prefix: str) -> int:
    numbers = [int(match[1]) for key in shapes if (match := re.match(rf"{prefix}(\d{{1,9}})\.", key))]
    return max(numbers, default=-1) + 1


def _patch(shapes: Shapes) -> tuple[int, int]:
    """Patch size and channels, by the patch projection, or by the prediction layer if the projection is misshapen."""
    shape = shapes.get("patch_embed.proj.weight", ())
    if len(shape) == 4 and shape[2] == shape[3] and min(shape):
        return shape[2], shape[1]
    if len(shape) == 5:
        raise CheckpointError(
            f"patch_embed.proj.weight is {shape}: a masked autoencoder of video, not of images",
            hint="only models of images can be read",
        )
    side = math.sqrt((_last(shapes, "decoder_pred.bias") or 0) / 3)
    if side < 1 or side != int(side):
        raise CheckpointError("the file holds no usable patch_embed.proj.weight, so its patch size is unknown")
    return int(side), 3


def _img_size(shapes: Shapes, patch_size: int, grid: tuple[int, int] | None, notes: list[str]) -> tuple[int, int]:
    if grid:
        return grid[0] * patch_size, grid[1] * patch_size
    for key in ("pos_embed", "decoder_pos_embed"):
        shape = shapes.get(key, ())
        patches = shape[1] - 1 if len(shape) == 3 else 0
        side = math.isqrt(patches) if patches > 0 else 0
        if side and side * side == patches:
            return side * patch_size, side * patch_size
        if patches > 0:
            rows = max(factor for factor in range(1, side + 1) if patches % factor == 0)
            notes.append(
                f"{patches} patches are no square: taken as {rows} rows of {patches // rows}; give the image size "
                "if it is another rectangle"
            )
            return rows * patch_size, patches // rows * patch_size
    notes.append("the file holds no position table, so its image size is unknown: about 224 pixels is assumed")
    side = max(1, 224 // patch_size) * patch_size
    return side, side


def _mlp_ratio(shapes: Shapes, embed_dim: int) -> float:
    in_block = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": -1}  # axis of the hidden units
    hidden = _majority(
        shape[in_block[match[1]]]
        for key, shape in shapes.items()
        if (match := re.match(r"blocks\.\d+\.mlp\.(fc1\.weight|fc1\.bias|fc2\.weight)$", key)) and shape
    )
    if hidden is None:
        return 4.0
    ratio = hidden / embed_dim
    # The model truncates embed_dim * ratio, so a ratio that was rounded down would give one hidden unit too few.
    return ratio if int(embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _heads(name: str, width: int, depth: int, notes: list[str], assumed: list[str]) -> int:
    """Number of heads of the variant with this width and depth, else the width divided by the usual head width."""
    fields = ("decoder_embed_dim", "decoder_depth") if name.startswith("decoder") else ("embed_dim", "depth")
    for variant in VARIANTS.values():
        if (getattr(variant, fields[0]), getattr(variant, fields[1])) == (width, depth):
            heads: int = getattr(variant, name)
            return heads
    usual = DECODER_HEAD_WIDTH if name.startswith("decoder") else HEAD_WIDTH
    heads = next(count for count in range(max(1, width // usual), 0, -1) if width % count == 0)
    assumed.append(name)
    flag = f"--{name.replace('_', '-')}"
    notes.append(f"shapes do not tell {name}: {heads} is assumed (heads {width // heads} wide); {flag} says otherwise")
    return heads
