"""The pre-norm Transformer block that encoder and decoder share (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mae.attention import Attention
from mae.config import LAYER_NORM_EPS


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them.

    Args:
        dim: Width of the input and the output.
        hidden_dim: Width between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Args:
        dim: D, the tokens' width.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, first_query: int = 0, scale: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L - first_query, D): only the tokens from ``first_query`` on are computed.

        Args:
            x: (B, L, D).
            first_query: The first token that is computed.
            scale: (B, 2), what each image's two branches are multiplied by (drop path); 1 if None.
        """
        mixed = self.attn(self.norm1(x), first_query)
        if scale is None:
            return self._finish(x[:, first_query:], mixed)
        x = x[:, first_query:] + mixed * scale[:, :1, None]
        out: Tensor = x + self.mlp(self.norm2(x)) * scale[:, 1:, None]
        return out

    def forward_shared(self, own: Tensor, shared: Tensor, ids: Tensor, first_query: int = 0) -> Tensor:
        """``forward`` of tokens of which many are the same in every image, normalised and projected once.

        Args:
            own: (B, K, D), tokens that differ from image to image.
            shared: (L, D), tokens that do not.
            ids: (B, M), which rows of ``shared`` follow the own tokens.
            first_query: The first of the K + M tokens that is computed.

        Returns:
            (B, K + M - first_query, D).
        """
        own_qkv, shared_qkv = (self.attn.qkv(self.norm1(tokens)) for tokens in (own, shared))
        qkv = torch.cat([own_qkv, F.embedding(ids, shared_qkv)], dim=1)
        x = torch.cat([own, F.embedding(ids, shared)], dim=1)
        return self._finish(x[:, first_query:], self.attn.mix(qkv, first_query))

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + mixed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def run_block(function: Callable[..., Tensor], *args: Any, activation_checkpointing: bool) -> Tensor:
    """Call a block; with ``activation_checkpointing`` the backward pass recomputes all but the block's input."""
    if activation_checkpointing and torch.is_grad_enabled():
        # Nothing in a block is random; keeping generator states would read the device's at every block.
        out: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*args)
