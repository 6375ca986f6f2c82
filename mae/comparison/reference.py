"""A second implementation of the masked autoencoder, written from the paper, to check the first one.

It shares no code with the model: plain float64 arithmetic on a state dict with official names, one block's
weights at a time, so that even a ViT-Huge needs little memory. Nothing here is fast or reused elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """Sizes that the state dict does not determine: numbers of heads; patches have ``patch_size`` pixels per side."""

    patch_size: int
    num_heads: int
    decoder_num_heads: int


def run_reference(
    state: Mapping[str, Tensor], sizes: Sizes, imgs: Tensor, noise: Tensor, mask_ratio: float
) -> dict[str, Tensor]:
    """Run a forward pass in float64, and return the outputs of all stages by name.

    Args:
        state: Weights under official names; without a decoder only the encoder's stages are returned.
        sizes: Sizes that the weights do not determine.
        imgs: Normalised images, (B, C, H, W).
        noise: Noise, (B, L); the patches with the lowest values stay visible.
        mask_ratio: Fraction of the patches that is masked.
    """
    imgs = imgs.double()
    stages: dict[str, Tensor] = {}
    patches = cut(imgs, sizes.patch_size)  # (B, L, p, p, C)
    # "Our encoder embeds patches by a linear projection with added positional embeddings"
    weight, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    tokens = torch.einsum("blhwc,dchw->bld", patches, weight) + bias
    stages["patch embedding"] = tokens
    positions = state["pos_embed"].double()[0]
    tokens = tokens + positions[1:]
    order = keep_order(noise, mask_ratio)
    tokens = torch.stack([image[kept] for image, kept in zip(tokens, order.kept, strict=True)])
    class_token = state["cls_token"].double()[0] + positions[:1]
    x = torch.cat([class_token.expand(len(imgs), 1, -1), tokens], dim=1)
    stages["visible tokens"] = x
    for number in count_blocks(state, "blocks."):
        x = block(x, state, f"blocks.{number}.", sizes.num_heads)
        stages[f"encoder block {number}"] = x
    if "norm.weight" not in state:  # a fine-tuned file
        return stages
    x = stages["encoder norm"] = layer_norm(x, state, "norm.")
    if "decoder_embed.weight" not in state:
        return stages

    x = stages["decoder embedding"] = linear(x, state, "decoder_embed.")
    # "The input to the MAE decoder is the full set of tokens", mask tokens in the gaps
    full = state["mask_token"].double().expand(len(x), patches.shape[1], -1).clone()
    for image, kept in enumerate(order.kept):
        full[image, kept] = x[image, 1:]
    x = torch.cat([x[:, :1], full], dim=1) + state["decoder_pos_embed"].double()
    stages["decoder tokens"] = x
    for number in count_blocks(state, "decoder_blocks."):
        x = block(x, state, f"decoder_blocks.{number}.", sizes.decoder_num_heads)
        stages[f"decoder block {number}"] = x
    x = stages["decoder norm"] = layer_norm(x, state, "decoder_norm.")
    pred = stages["prediction"] = linear(x, state, "decoder_pred.")[:, 1:]
    pixels = patches.flatten(2)  # a patch's vector is (row, column, channel)
    stages["loss, pixels"] = loss(pred, pixels, order.masked)
    stages["loss, normalised"] = loss(pred, standardised(pixels), order.masked)
    return stages


def run_classifier(state: Mapping[str, Tensor], sizes: Sizes, imgs: Tensor, pool: str) -> Tensor:
    """The logits of a fine-tuned file for unmasked images in float64, (B, classes).

    Args:
        state: Weights under official names, with ``head.weight`` and ``head.bias``.
        sizes: Sizes that the weights do not determine.
        imgs: Normalised images, (B, C, H, W).
        pool: Input of the head: "mean" of the patch tokens, or "cls", the class token.
    """
    patches = cut(imgs.double(), sizes.patch_size)  # (B, L, p, p, C)
    weight, bias = state["patch_embed.proj.weight"].double(), state["patch_embed.proj.bias"].double()
    tokens = torch.einsum("blhwc,dchw->bld", patches, weight) + bias
    class_token = state["cls_token"].double().expand(len(imgs), 1, -1)
    x = torch.cat([class_token, tokens], dim=1) + state["pos_embed"].double()
    for number in count_blocks(state, "blocks."):
        x = block(x, state, f"blocks.{number}.", sizes.num_heads)
    if "fc_norm.weight" not in state:
        x = layer_norm(x, state, "norm.")
    pooled = x[:, 1:].mean(dim=1, keepdim=True) if pool == "mean" else x[:, :1]
    if "fc_norm.weight" in state:
        pooled = layer_norm(pooled, state, "fc_norm.")
    return linear(pooled, state, "head.")[:, 0]


@dataclass(frozen=True)
class Order:
    """Positions of the visible and the masked patches of each image."""

    kept: np.ndarray
    masked: np.ndarray


def keep_order(noise: Tensor, mask_ratio: float) -> Order:
    """Choose the visible patches: those of lowest noise, in ascending order; ties in reading order."""
    ranks = np.argsort(noise.numpy(), axis=1, kind="stable")
    kept = int(ranks.shape[1] * (1 - mask_ratio))
    return Order(ranks[:, :kept], ranks[:, kept:])


def cut(imgs: Tensor, side: int) -> Tensor:
    """Cut images into patches in reading order: (B, C, H, W) -> (B, L, p, p, C)."""
    rows, columns = imgs.shape[2] // side, imgs.shape[3] // side
    squares = [
        imgs[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(squares, dim=1).movedim(2, -1)


def block(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    """A pre-norm Transformer block, attention and then an MLP with the exact GELU: (B, N, D) -> (B, N, D)."""
    x = x + attention(layer_norm(x, state, name + "norm1."), state, name + "attn.", heads)
    hidden = linear(layer_norm(x, state, name + "norm2."), state, name + "mlp.fc1.")
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return x + linear(hidden, state, name + "mlp.fc2.")


def attention(x: Tensor, state: Mapping[str, Tensor], name: str, heads: int) -> Tensor:
    """Multi-head attention, softmax(Q K^T / sqrt(d)) V for each head: (B, N, D) -> (B, N, D)."""
    queries, keys, values = linear(x, state, name + "qkv.").chunk(3, dim=2)
    width = x.shape[2] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bqd,bkd->bqk", queries[..., part], keys[..., part]) / math.sqrt(width)
        weights = torch.exp(scores - scores.amax(dim=2, keepdim=True))
        weights = weights / weights.sum(dim=2, keepdim=True)
        mixed.append(torch.einsum("bqk,bkd->bqd", weights, values[..., part]))
    return linear(torch.cat(mixed, dim=2), state, name + "proj.")


def layer_norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    """Layer norm: zero mean and unit (biased) variance over each token, then scale and shift."""
    centred = x - x.mean(dim=2, keepdim=True)
    variance = (centred * centred).mean(dim=2, keepdim=True)
    return centred / torch.sqrt(variance + EPS) * state[name + "weight"].double() + state[name + "bias"].double()


def linear(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    """A linear layer, X W^T + b."""
    return x @ state[name + "weight"].double().T + state[name + "bias"].double()


def standardised(patches: Tensor) -> Tensor:
    """Normalise each patch: subtract its mean, divide by sqrt(unbiased variance + 1e-6)."""
    centred = patches - patches.mean(dim=2, keepdim=True)
    variance = (centred * centred).sum(dim=2, keepdim=True) / (patches.shape[2] - 1)
    return centred / torch.sqrt(variance + EPS)


def loss(pred: Tensor, target: Tensor, masked: np.ndarray) -> Tensor:
    """The mean squared error of the masked patches, scalar."""
    errors = [((pred[i, ids] - target[i, ids]) ** 2).mean(dim=1) for i, ids in enumerate(masked)]
    return torch.cat(errors).mean()


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> range:
    """Numbers of the blocks under a prefix."""
    return range(len({key.split(".")[1] for key in state if key.startswith(prefix)}))
