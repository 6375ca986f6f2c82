"""Multi-head self-attention (Vaswani et al. 2017; used unchanged by the paper's ViT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    r"""Scaled dot-product self-attention over all tokens with :math:`h` heads.

    .. math:: \mathrm{softmax}\!\left(Q K^\top / \sqrt{D / h}\right) V

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

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """(B, L, D) -> (B, L - first_query, D): tokens from ``first_query`` on ask, all of them answer."""
        out: Tensor = self.proj(self.mix_tokens(x, first_query))
        return out

    def mix_tokens(self, x: Tensor, first_query: int = 0) -> Tensor:
        """``forward`` without the projection at its end."""
        if first_query == 0 or not is_weight_alone(self.qkv, nn.Linear):
            return self.mix(self.qkv(x), first_query)
        dim = x.shape[2]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, first_query:], weight[:dim], bias[:dim])
        k, v = F.linear(x, weight[dim:], bias[dim:]).chunk(2, dim=2)
        return self._mix(q, k, v)

    def mix(self, qkv: Tensor, first_query: int = 0) -> Tensor:
        """As ``mix_tokens``, from queries, keys and values side by side (B, L, 3 D)."""
        q, k, v = qkv.chunk(3, dim=2)
        return self._mix(q[:, first_query:], k, v)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, _, dim = q.shape
        heads = (batch, -1, self.num_heads, dim // self.num_heads)
        q, k, v = (x.view(heads).transpose(1, 2) for x in (q, k, v))  # each (B, heads, L, D / heads)
        return attend(q, k, v).transpose(1, 2).flatten(2)


def is_weight_alone(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer computes what its weight and bias say; adapters and quantised layers do not, nor do hooks."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return type(layer) is kind and layer.bias is not None and not hooked


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention, (B, heads, Q, d), (B, heads, L, d) twice -> (B, heads, Q, d).

    Torch's fused kernel, which never stores the (Q, L) weights, but for bf16 on a CPU: there the fused
    kernel's backward pass was measured to be 4 to 7 times slower than plain matrix products.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        mixed: Tensor = weights.softmax(dim=-1) @ v
        return mixed
    return F.scaled_dot_product_attention(q, k, v)
