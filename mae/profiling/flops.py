"""Operations of the matrix products, computed from sizes alone. Standard library only.

One multiply-accumulate (MAC) is two floating-point operations (FLOPs). Attention's two products, queries
by keys and weights by values, count; everything pointwise (norms, softmax, GELU, additions) does not.
This is the convention of ``torch.utils.flop_counter``, whose counts on the meta device these equal.

The backward pass of a product is two products of the same size, one for each factor's gradient; where a
factor needs none, as the images, it is one. Kernels that recompute something in their backward pass
(flash attention, activation checkpointing) do more work than that; it is not counted, as it is the
kernel's choice and not the algorithm's.
"""

from __future__ import annotations

import dataclasses

from mae.config import MAEConfig


@dataclasses.dataclass(frozen=True)
class Compute:
    """FLOPs (2 x MACs) of a forward and a backward pass."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Compute) -> Compute:
        return Compute(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Compute:
        return Compute(self.forward * times, self.backward * times)

    @property
    def step(self) -> int:
        """A training step: forward and backward; the optimiser multiplies no matrices."""
        return self.forward + self.backward


def official_compute(config: MAEConfig, kept: int) -> dict[str, Compute]:
    """One image through the official model, per module of ``MaskedAutoencoder``.

    It embeds all patches before masking, and computes a prediction for the class token, which is not used.

    Args:
        config: The model's sizes.
        kept: K, the visible patches.
    """
    patches, inner = config.num_patches, config.decoder_embed_dim
    return {
        **encoder_compute(config, embedded=patches, encoded=kept),
        "decoder.decoder_embed": linear(1 + kept, config.embed_dim, inner),
        **blocks("decoder.blocks", config.decoder_depth, 1 + patches, inner, config.mlp_ratio),
        "decoder.pred": linear(1 + patches, inner, config.patch_dim),
    }


def encoder_compute(config: MAEConfig, *, embedded: int, encoded: int) -> dict[str, Compute]:
    """One image through the encoder: ``embedded`` patches are projected, ``encoded`` of them encoded."""
    return {
        "patch_embed.proj": linear(embedded, config.patch_dim, config.embed_dim, input_gradient=False),
        **blocks("encoder.blocks", config.depth, 1 + encoded, config.embed_dim, config.mlp_ratio),
    }


def total(modules: dict[str, Compute], prefix: str = "") -> Compute:
    """The sum over the modules whose name starts with ``prefix``."""
    return sum((compute for name, compute in modules.items() if name.startswith(prefix)), Compute())


def blocks(prefix: str, depth: int, tokens: int, width: int, mlp_ratio: float) -> dict[str, Compute]:
    """``depth`` Transformer blocks over all of ``tokens`` tokens."""
    block = block_compute(tokens, width, mlp_ratio)
    return {f"{prefix}.{number}.{name}": compute for number in range(depth) for name, compute in block.items()}


def block_compute(tokens: int, width: int, mlp_ratio: float) -> dict[str, Compute]:
    """One Transformer block; ``attn.products`` are queries by keys and weights by values."""
    hidden = int(width * mlp_ratio)
    return {
        "attn.qkv": linear(tokens, width, 3 * width),
        "attn.products": attention(tokens, tokens, width),
        "attn.proj": linear(tokens, width, width),
        "mlp.fc1": linear(tokens, width, hidden),
        "mlp.fc2": linear(tokens, hidden, width),
    }


def linear(tokens: int, inputs: int, outputs: int, *, input_gradient: bool = True) -> Compute:
    """(tokens, inputs) by (inputs, outputs); ``input_gradient``: whether its input needs a gradient."""
    forward = 2 * tokens * inputs * outputs
    return Compute(forward, forward * (2 if input_gradient else 1))


def attention(queries: int, keys: int, width: int) -> Compute:
    """All heads' two products: width is that of all heads together."""
    forward = 2 * 2 * queries * keys * width
    return Compute(forward, 2 * forward)
