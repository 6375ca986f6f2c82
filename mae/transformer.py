"""The pre-norm Transformer block that encoder and decoder share (Dosovitskiy et al. 2021)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook
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
        if scale is None and _keeps_less(x, self):
            if first_query == 0:
                norm, qkv = self.norm1, self.attn.qkv
                mixed = self.attn.mix(_NormLinear.apply(x, norm.eps, norm.weight, norm.bias, qkv.weight, qkv.bias))
            else:
                mixed = self.attn.mix_tokens(self.norm1(x), first_query)
            return self._finish_keeping_less(x[:, first_query:], mixed)
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
        mixed, x = self.attn.mix(qkv, first_query), x[:, first_query:]
        if _keeps_less(x, self):
            return self._finish_keeping_less(x, mixed)
        return self._finish(x, self.attn.proj(mixed))

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + mixed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _finish_keeping_less(self, x: Tensor, mixed: Tensor) -> Tensor:
        layers = (self.attn.proj, self.norm2, self.mlp.fc1, self.mlp.fc2)
        weights = [value for layer in layers for value in (layer.weight, layer.bias)]
        out: Tensor = _Finish.apply(x, mixed, self.norm2.eps, *weights)
        return out


def run_block(function: Callable[..., Tensor], *args: Any, activation_checkpointing: bool) -> Tensor:
    """Call a block; with ``activation_checkpointing`` the backward pass recomputes all but the block's input."""
    if activation_checkpointing and torch.is_grad_enabled():
        # Nothing in a block is random; keeping generator states would read the device's at every block.
        out: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*args)


# What the blocks keep for their backward pass is most of the memory of training. In float32 on a CPU, the two functions
# below stand for a block's modules: the same kernels, so the same bits, but norms' and GELU's results are computed
# again when they are needed. The heap keeps freed memory, so gaps in it count: a result that is kept is allocated
# before what is not, and GELU's results have a place of their own. On a GPU the time that this takes is not measured.

_KNOWN = (nn.LayerNorm, nn.Linear, nn.GELU, Mlp, Attention)


def _keeps_less(x: Tensor, block: Block) -> bool:
    """Whether ``_NormLinear`` and ``_Finish`` may stand for a block's modules: in plain training, with none changed.

    Hooks, replaced modules (adapters, quantised or parametrised layers), autocast, compilers and exporters meet the
    modules themselves.
    """
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call,attr-defined]
        and not torch._C._are_functorch_transforms_active()
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and type(x) is Tensor
        and x.dtype == torch.float32
        and all(_is_plain(module) for module in block.modules() if module is not block)
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module of a block is as it was built: its class, its parameters, and nothing hooked to it."""
    return (
        type(module) in _KNOWN
        and "forward" not in vars(module)
        and getattr(module, "approximate", "none") == "none"  # GELU's
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and all(type(value) is nn.Parameter and value.dtype == torch.float32 for value in module._parameters.values())
    )


class _NormLinear(torch.autograd.Function):
    """A norm and a linear layer; keeps the norm's input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, *weights: Tensor) -> Tensor:
        norm_weight, norm_bias, weight, bias = weights
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps = eps
        out = x.new_empty(*x.shape[:-1], len(weight))
        return _linear_into(out, F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_x, *of_weights = _backward_of_norm_linear(gradient, ctx.needs_input_grad[2:], ctx.eps, *ctx.saved_tensors)
        return of_x, None, *of_weights


class _Finish(torch.autograd.Function):
    """``Block._finish``; keeps what attention found, the norm's input and the MLP's hidden values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mixed: Tensor, eps: float, *weights: Tensor) -> Tensor:
        proj_weight, proj_bias, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights
        x = _linear_into(x.new_empty(x.shape), mixed, proj_weight, proj_bias).add_(x)
        hidden, out = x.new_empty(*x.shape[:-1], len(fc1_weight)), torch.empty_like(x)
        _linear_into(hidden, F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), fc1_weight, fc1_bias)
        ctx.save_for_backward(mixed, x, hidden, proj_weight, norm_weight, norm_bias, fc1_weight, fc2_weight)
        ctx.eps = eps
        activated = torch.ops.aten.gelu.out(hidden, out=_scratch(hidden))
        return _linear_into(out, activated, fc2_weight, fc2_bias).add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        mixed, x, hidden, proj_weight, norm_weight, norm_bias, fc1_weight, fc2_weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        activated = torch.ops.aten.gelu.out(hidden, out=_scratch(hidden))
        of_fc2 = _backward_of_linear(gradient, needed[6:], activated)
        of_hidden = activated  # its place; GELU's results are done with
        torch.mm(gradient.flatten(0, -2), fc2_weight, out=of_hidden.view(-1, of_hidden.shape[-1]))
        torch.ops.aten.gelu_backward.grad_input(of_hidden, hidden, grad_input=of_hidden)
        of_x, *of_mlp = _backward_of_norm_linear(of_hidden, needed[2:6], ctx.eps, x, norm_weight, norm_bias, fc1_weight)
        assert of_x is not None
        of_x.add_(gradient)
        of_mixed = (of_x.flatten(0, -2) @ proj_weight).view(mixed.shape) if ctx.needs_input_grad[1] else None
        return of_x, of_mixed, None, *_backward_of_linear(of_x, needed[:2], mixed), *of_mlp, *of_fc2


_kept = threading.local()


def _scratch(like: Tensor) -> Tensor:
    """Memory for values that never leave a function. Allocated each time, it would not fit between new gradients."""
    values: Tensor | None = getattr(_kept, "scratch", None)
    if values is None or len(values) < like.numel():
        _kept.scratch = values = like.new_empty(like.numel())
    return values[: like.numel()].view(like.shape)


def _linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    torch.addmm(bias, x.flatten(0, -2), weight.t(), out=out.view(-1, len(weight)))
    return out


def _backward_of_linear(gradient: Tensor, needed: Sequence[bool], x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a linear layer's weight and bias, from its output's gradient and its input."""
    gradient = gradient.flatten(0, -2)
    return gradient.t() @ x.flatten(0, -2) if needed[0] else None, gradient.sum(0) if needed[1] else None


def _backward_of_norm_linear(
    gradient: Tensor,
    needed: Sequence[bool],
    eps: float,
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x`` and of the norm's and the linear layer's weights and biases."""
    normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    of_linear = _backward_of_linear(gradient, needed[2:], normed)
    del normed
    of_normed = (gradient.flatten(0, -2) @ weight).view(x.shape)
    of_norm = torch.ops.aten.native_layer_norm_backward(
        of_normed, x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, [True, *needed[:2]]
    )
    return *of_norm, *of_linear
