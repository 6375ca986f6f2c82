"""Checkpoints in the official format, with weights from a fixed random stream.

The same (sizes, seed) gives the same bytes on every machine; the stored values of the official model were computed with
these weights, images and noise. No parameter is near its initial value, so a model that ignores a parameter cannot
agree. From ``mae`` only the sizes are used; the position embeddings have their own formula here.
"""

from __future__ import annotations

import argparse
import functools
import math
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae.config import MAEConfig
from mae.models import VARIANTS

GOLDEN: dict[str, MAEConfig] = {
    "golden_tiny": MAEConfig((64, 64), 8, 3, 128, 3, 2, 64, 2, 4),
    "golden_gray": MAEConfig((48, 48), 8, 1, 64, 2, 1, 64, 1, 2),
    **{name: VARIANTS[name] for name in ("vit_base", "vit_large", "vit_huge")},
}


def position_table(width: int, grid: tuple[int, int]) -> np.ndarray:
    """(1, 1 + rows * columns, width): the column in the first half, the row in the second, zeros for the class."""
    frequency = 1.0 / 10000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    angles = [np.outer(position, frequency) for position in (columns, rows)]
    patches = np.concatenate([half for angle in angles for half in (np.sin(angle), np.cos(angle))], axis=1)
    return np.concatenate([np.zeros((1, width)), patches])[None].astype(np.float32)


def shapes(config: MAEConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official state dict, by name."""
    width, decoder_width = config.embed_dim, config.decoder_embed_dim
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + config.num_patches, width),
        "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, 1 + config.num_patches, decoder_width),
        "patch_embed.proj.weight": (width, config.in_chans, config.patch_size, config.patch_size),
        "patch_embed.proj.bias": (width,),
    }
    for prefix, depth, dim in (
        ("blocks", config.depth, width),
        ("decoder_blocks", config.decoder_depth, decoder_width),
    ):
        for number in range(depth):
            found |= _block(f"{prefix}.{number}", dim)
        if prefix == "blocks":
            found |= {"norm.weight": (width,), "norm.bias": (width,)}
            found |= {"decoder_embed.weight": (decoder_width, width), "decoder_embed.bias": (decoder_width,)}
    found |= {"decoder_norm.weight": (decoder_width,), "decoder_norm.bias": (decoder_width,)}
    found |= {"decoder_pred.weight": (config.patch_dim, decoder_width), "decoder_pred.bias": (config.patch_dim,)}
    return found


def _block(prefix: str, dim: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for norm in ("norm1", "norm2"):
        found |= {f"{prefix}.{norm}.weight": (dim,), f"{prefix}.{norm}.bias": (dim,)}
    for name, outputs, inputs in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
        found |= {
            f"{prefix}.{name}.weight": (outputs * dim, inputs * dim),
            f"{prefix}.{name}.bias": (outputs * dim,),
        }
    return found


def weights(config: MAEConfig, seed: int = 7) -> dict[str, Tensor]:
    """The state dict of a full model."""
    return {key: torch.from_numpy(_kept(config, key, shape, seed).copy()) for key, shape in shapes(config).items()}


def _kept(config: MAEConfig, key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Small tensors are drawn once; hundreds of tests ask for the same ones."""
    return (_drawn if math.prod(shape) < 10**5 else _values)(config, key, shape, seed)


def _values(config: MAEConfig, key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if key.endswith("pos_embed"):
        return position_table(shape[-1], config.grid)
    draw = np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32).standard_normal(shape)
    if "norm" in key:
        draw = 1.0 + 0.1 * draw if key.endswith("weight") else 0.1 * draw
    elif key.endswith("bias"):
        draw = 0.05 * draw
    elif key.endswith("_token"):
        draw = 0.5 * draw
    else:
        draw = draw / np.sqrt(np.prod(shape[1:]))
    return draw.astype(np.float32)


_drawn = functools.cache(_values)


def is_decoder(key: str) -> bool:
    """Whether a tensor is missing from an encoder-only file."""
    return key.startswith("decoder") or key == "mask_token"


def checkpoint(config: MAEConfig, kind: str = "full", seed: int = 7) -> dict[str, Any]:
    """The object for ``torch.save``: kind "full", "encoder", or "training" as the official trainer writes it."""
    state = weights(config, seed)
    if kind == "encoder":
        state = {key: tensor for key, tensor in state.items() if not is_decoder(key)}
    if kind != "training":
        return {"model": state}
    args = argparse.Namespace(model="mae", input_size=config.img_size[0], mask_ratio=0.75, norm_pix_loss=True)
    optimizer = {"state": {}, "param_groups": [{"betas": (0.9, 0.95), "lr": 1e-3, "params": [0, 1]}]}
    return {"model": state, "optimizer": optimizer, "epoch": 19, "scaler": {"scale": 65536.0}, "args": args}


def inputs(config: MAEConfig, seed: int = 7, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and masking noise (B, L), float32; the lowest noise is kept."""
    stream = np.random.RandomState(seed + 1)
    imgs = stream.standard_normal((batch, config.in_chans, *config.img_size)).astype(np.float32)
    noise = stream.uniform(size=(batch, config.num_patches)).astype(np.float32)
    return torch.from_numpy(imgs), torch.from_numpy(noise)
