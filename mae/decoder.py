"""The MAE decoder: from visible tokens to pixels (Paper: Section 3, "MAE decoder")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mae.config import LAYER_NORM_EPS
from mae.masking import take_patches
from mae.pos_embed import sincos_2d
from mae.transformer import Block


class MAEDecoder(nn.Module):
    """Projects visible tokens, puts mask tokens in the gaps, and predicts the pixels of patches.

    Only pre-training uses it, so its size is independent of the encoder's.

    Args:
        encoder_embed_dim: D, the width of the encoder's tokens.
        decoder_embed_dim: E, the width inside the decoder.
        grid: Patches as (rows, columns).
        patch_dim: Values predicted per patch, p * p * C.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``decoder_embed_dim``.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder_embed_dim: int,
        decoder_embed_dim: int,
        grid: tuple[int, int],
        patch_dim: int,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(encoder_embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.register_buffer("decoder_pos_embed", sincos_2d(decoder_embed_dim, grid))
        self.blocks = nn.ModuleList(Block(decoder_embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(decoder_embed_dim, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(decoder_embed_dim, patch_dim)

    def forward(self, latent: Tensor, ids_restore: Tensor, ids_predict: Tensor | None = None) -> Tensor:
        """Predict the pixels of every patch, or only of those asked for.

        Args:
            latent: (B, 1 + K, D), the encoder's output with its class token.
            ids_restore: (B, L), where in [visible | removed] each position is found.
            ids_predict: (B, M), the positions to predict; all of them if None.

        Returns:
            (B, L, p * p * C) in reading order, or (B, M, p * p * C) in the order of ``ids_predict``.
        """
        x = self.decoder_embed(latent)  # (B, 1 + K, E)
        batch, tokens, width = x.shape
        mask_tokens = self.mask_token.to(x.dtype).expand(batch, ids_restore.shape[1] + 1 - tokens, width)
        patches = take_patches(torch.cat([x[:, 1:], mask_tokens], dim=1), ids_restore)  # (B, L, E)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.blocks:
            x = block(x)
        x = x[:, 1:]  # the class token predicts nothing
        if ids_predict is not None:
            x = take_patches(x, ids_predict)
        out: Tensor = self.pred(self.norm(x))
        return out
