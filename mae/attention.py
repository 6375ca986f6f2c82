"""Multi-head self-attention (Vaswani et al. 2017; used unchanged by the paper's ViT)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    r"""Scaled dot-product self-attention over all tokens with :math:`h` heads.

    .. math:: \mathrm{softmax}\!\left(Q K^\top / \sqrt{D / h}\right) V

    Computed by torch's fused kernel, which never stores the (L, L) weights where a flash kernel exists.

    Args:
        dim: D, the tokens' width, a multiple of ``num_heads``.
        num_heads: Number of heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads; got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, L, D / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        x = x.transpose(1, 2).reshape(batch, length, dim)
        out: Tensor = self.proj(x)
        return out
