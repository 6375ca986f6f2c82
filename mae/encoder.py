"""The MAE encoder: the blocks of a ViT, applied to a subset of the tokens (Paper: Section 3, "MAE encoder")."""

from __future__ import annotations

from torch import Tensor, nn

from mae.config import LAYER_NORM_EPS
from mae.transformer import Block, run_block


class MAEEncoder(nn.Module):
    """A stack of Transformer blocks and a final LayerNorm.

    Patch embedding, positions, class token and masking are in ``MaskedAutoencoder``. In pre-training the input is the
    visible tokens (a quarter of them at mask ratio 0.75), for features all tokens.

    Args:
        embed_dim: D, the tokens' width.
        depth: Number of blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``embed_dim``.
    """

    def __init__(self, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        self.activation_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Encode tokens: (B, 1 + K, D) -> (B, 1 + K, D)."""
        for block in self.blocks:
            x = run_block(block, x, activation_checkpointing=self.activation_checkpointing)
        out: Tensor = self.norm(x)
        return out
