"""FLOPs and memory of ``MaskedAutoencoder.pretraining_loss``, which must match its shortcuts.

Against the official forward it embeds the visible patches only; projects the mask tokens' queries, keys and
values in the decoder's first block once per batch; and in the decoder's last block, the prediction and the
loss computes the masked patches only. Standard library only.
"""

from __future__ import annotations

from mae.config import MAEConfig
from mae.profiling.flops import Compute, attention, block_compute, blocks, encoder_compute, linear
from mae.profiling.tape import FLOAT, Step, Tape


def own_compute(config: MAEConfig, kept: int, batch: int) -> dict[str, Compute]:
    """A whole batch through ``pretraining_loss``, per module.

    Args:
        config: The model's sizes.
        kept: K, the visible patches.
        batch: B, images in a batch; part of the work is done once for all of them.
    """
    width, ratio = config.decoder_embed_dim, config.mlp_ratio
    patches, masked, last = config.num_patches, config.num_patches - kept, config.decoder_depth - 1
    per_image = {
        **encoder_compute(config, embedded=kept, encoded=kept),
        "decoder.decoder_embed": linear(1 + kept, config.embed_dim, width),
        **blocks("decoder.blocks", config.decoder_depth, 1 + patches, width, ratio),
        **_named(f"decoder.blocks.{last}", block_compute(masked, width, ratio)),
        f"decoder.blocks.{last}.attn.qkv": linear(masked, width, width) + linear(1 + patches, width, 2 * width),
        f"decoder.blocks.{last}.attn.products": attention(masked, 1 + patches, width),
        "decoder.blocks.0.attn.qkv": linear(1 + kept, width, 3 * width),
        "decoder.pred": linear(masked, width, config.patch_dim),
    }
    whole = {name: compute * batch for name, compute in per_image.items()}
    whole["decoder.blocks.0.attn.qkv"] += linear(patches, width, 3 * width)
    return whole


def own_tape(
    config: MAEConfig, kept: int, batch: int, precision: str, device: str, *, activation_checkpointing: bool = False
) -> Tape:
    """What a batch through ``pretraining_loss`` keeps for its backward pass.

    Args:
        config: The model's sizes.
        kept: K, the visible patches.
        batch: B, images.
        precision, device: As ``Tape``.
        activation_checkpointing: Whether blocks keep their input only (``set_activation_checkpointing``).
    """
    tape = Tape(batch, precision, device)
    patches, masked = config.num_patches, config.num_patches - kept
    inner, heads, ratio = config.decoder_embed_dim, config.decoder_num_heads, config.mlp_ratio

    tape.linear(kept, config.patch_dim, config.embed_dim)
    for _ in range(config.depth):
        first = len(tape.steps)
        tape.block(1 + kept, config.embed_dim, config.num_heads, ratio)
        if activation_checkpointing:
            tape.checkpoint_from(first, _stream(batch, 1 + kept, config.embed_dim))
    tape.norm(1 + kept, config.embed_dim)
    tape.linear(1 + kept, config.embed_dim, inner)

    for number in range(config.decoder_depth):
        first = len(tape.steps)
        is_last = number == config.decoder_depth - 1
        asked = masked if is_last else 1 + patches
        if number == 0:
            tape.norm(1 + kept, inner)
            tape.linear(1 + kept, inner, 3 * inner, again=True)
            tape.norm(patches, inner, per_image=False)
            tape.linear(patches, inner, 3 * inner, per_image=False)
            tape.attention(asked, 1 + patches, inner, heads)
            inputs = _stream(batch, 1 + kept, inner) + _stream(1, patches, inner)
        else:
            if is_last:
                tape.norm(1 + patches, inner)
                tape.linear(asked, inner, inner)
                tape.linear(1 + patches, inner, 2 * inner)
            else:
                tape.norm_linear(1 + patches, inner, 3 * inner)
            tape.attention(asked, 1 + patches, inner, heads)
            inputs = _stream(batch, 1 + patches, inner)
        tape.finish_block(asked, inner, ratio)
        if activation_checkpointing:
            tape.checkpoint_from(first, inputs)
    tape.norm(masked, inner)
    tape.linear(masked, inner, config.patch_dim)

    predicted = batch * masked * config.patch_dim * FLOAT
    tape.steps.append(Step(kept=predicted, passing=4 * predicted))
    return tape


def own_forward_end(config: MAEConfig, kept: int, batch: int) -> int:
    """Bytes that the end of ``pretraining_loss`` holds beside the tape: patches, prediction, target, squares."""
    return batch * (config.num_patches + 3 * (config.num_patches - kept)) * config.patch_dim * FLOAT


def _named(prefix: str, modules: dict[str, Compute]) -> dict[str, Compute]:
    return {f"{prefix}.{name}": compute for name, compute in modules.items()}


def _stream(batch: int, tokens: int, width: int) -> int:
    """Bytes of the residual stream, float32 in every precision."""
    return batch * tokens * width * FLOAT
