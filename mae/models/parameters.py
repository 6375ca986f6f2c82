"""The number of parameters of a model, computed from its sizes. Standard library only."""

from __future__ import annotations

import dataclasses

from mae.config import MAEConfig

POSITION_TABLES = ("pos_embed", "decoder.decoder_pos_embed")  # saved in files, but not trained


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Numbers of values of a model.

    Attributes:
        encoder: Values of an encoder-only file, the fixed position table included.
        decoder: All other values, with the mask token and the decoder's fixed position table.
        total: Sum of both.
        trainable: Total without the two position tables.
    """

    encoder: int
    decoder: int
    total: int
    trainable: int


def count_parameters(config: MAEConfig) -> ParameterCounts:
    """Count the parameters of a model exactly."""
    modules = module_parameters(config)
    total = sum(modules.values())
    decoder = sum(count for name, count in modules.items() if name.startswith("decoder."))
    frozen = sum(modules[name] for name in POSITION_TABLES)
    return ParameterCounts(total - decoder, decoder, total, total - frozen)


def module_parameters(config: MAEConfig) -> dict[str, int]:
    """Number of values of each module (or single parameter), by its name in ``MaskedAutoencoder``."""
    tokens = 1 + config.num_patches
    width, inner = config.embed_dim, config.decoder_embed_dim
    return {
        "cls_token": width,
        "pos_embed": tokens * width,
        "patch_embed.proj": _linear(config.patch_dim, width),
        **_blocks("encoder.blocks", config.depth, width, config.mlp_ratio),
        "encoder.norm": 2 * width,
        "decoder.mask_token": inner,
        "decoder.decoder_pos_embed": tokens * inner,
        "decoder.decoder_embed": _linear(width, inner),
        **_blocks("decoder.blocks", config.decoder_depth, inner, config.mlp_ratio),
        "decoder.norm": 2 * inner,
        "decoder.pred": _linear(inner, config.patch_dim),
    }


def _blocks(prefix: str, depth: int, width: int, mlp_ratio: float) -> dict[str, int]:
    hidden = int(width * mlp_ratio)
    block = {
        "norm1": 2 * width,
        "attn.qkv": _linear(width, 3 * width),
        "attn.proj": _linear(width, width),
        "norm2": 2 * width,
        "mlp.fc1": _linear(width, hidden),
        "mlp.fc2": _linear(hidden, width),
    }
    return {f"{prefix}.{number}.{name}": count for number in range(depth) for name, count in block.items()}


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
