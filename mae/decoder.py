"""The MAE decoder: from visible tokens to pixels (Paper: Section 3, "MAE decoder")."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config import LAYER_NORM_EPS
from mae.masking import Masking, take_patches
from mae.pos_embed import on_default_device, sincos_2d
from mae.transformer import Block, run_block


class MAEDecoder(nn.Module):
    """Projects visible tokens, inserts mask tokens for the masked patches, and predicts the pixels of patches.

    Only pre-training uses it, so its size is independent of the encoder's.

    Args:
        encoder_embed_dim: D, the width of the encoder's tokens.
        decoder_embed_dim: E, the width inside the decoder.
        grid: Grid of patches, (rows, columns).
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
        self.register_buffer("decoder_pos_embed", on_default_device(sincos_2d(decoder_embed_dim, grid)))
        self.blocks = nn.ModuleList(Block(decoder_embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(decoder_embed_dim, eps=LAYER_NORM_EPS)
        self.pred = nn.Linear(decoder_embed_dim, patch_dim)
        self.activation_checkpointing = False

    def forward(self, latent: Tensor, ids_restore: Tensor) -> Tensor:
        """Predict the pixels of every patch.

        Args:
            latent: (B, 1 + K, D), the encoder's output with its class token.
            ids_restore: (B, L), index in [visible | masked] of each position of the image.

        Returns:
            (B, L, p * p * C) in reading order.
        """
        x = self.decoder_embed(latent)  # (B, 1 + K, E)
        batch, tokens, width = x.shape
        mask_tokens = self.mask_token.to(x.dtype).expand(batch, ids_restore.shape[1] + 1 - tokens, width)
        patches = take_patches(torch.cat([x[:, 1:], mask_tokens], dim=1), ids_restore)  # (B, L, E)
        x = torch.cat([x[:, :1], patches], dim=1) + self.decoder_pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.pred(self.norm(x))[:, 1:]  # without the class token's prediction
        return out

    def predict_masked(self, latent: Tensor, masking: Masking) -> Tensor:
        """Predict the masked patches only: the same values as ``forward``, with less computation.

        Attention does not depend on the order of the tokens, so they stay in the order [class | visible | masked]. In
        the first block, queries, keys and values of a mask token depend on its position only, so they are computed once
        for all images; the last block is computed for the masked patches only.

        Args:
            latent: (B, 1 + K, D), the encoder's output with its class token.
            masking: The mask of each image.

        Returns:
            (B, L - K, p * p * C) in the order of ``masking.ids_masked``.
        """
        positions = self.decoder_pos_embed[0]  # (1 + L, E)
        class_id = masking.ids_keep.new_zeros(len(latent), 1)
        ids_visible = torch.cat([class_id, masking.ids_keep + 1], dim=1)
        visible = self.decoder_embed(latent) + F.embedding(ids_visible, positions)  # (B, 1 + K, E)
        masked = self.mask_token[0] + positions[1:]  # (L, E)
        x, seen = visible, visible.shape[1]
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            first_query = seen if number == len(self.blocks) - 1 else 0
            run = partial(run_block, activation_checkpointing=self.activation_checkpointing)
            if number == 0:
                x = run(block.forward_shared, x, masked, masking.ids_masked, first_query)
            else:
                x = run(block, x, first_query)
        out: Tensor = self.pred(self.norm(x))
        return out
