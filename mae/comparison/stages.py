"""Records the stages of a model's forward pass, and compares them with another model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mae.mae import MaskedAutoencoder

# Largest difference of two correct implementations, relative to a stage's norm. In float64 rounding gives about 1e-15,
# and a LayerNorm epsilon of 1e-5 instead of 1e-6 about 4e-6, so the tolerance separates errors from rounding.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class StageDifference:
    """The difference between two computations at one stage.

    Attributes:
        name: Name of the stage.
        largest: Largest absolute difference of two values; infinite if one side lacks the stage or has another shape,
            NaN if a difference is not finite.
        relative: Norm of the difference over the norm of the reference; infinite where ``largest`` is not finite.
    """

    name: str
    largest: float
    relative: float


def compare_stages(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[StageDifference, ...]:
    """The difference at every stage of the reference, in its order."""
    return tuple(_difference(name, ours.get(name), theirs) for name, theirs in reference.items())


def first_beyond(stages: tuple[StageDifference, ...], tolerance: float) -> str | None:
    """The first stage whose relative difference exceeds the tolerance; None if none does."""
    return next((stage.name for stage in stages if not stage.relative <= tolerance), None)


def _difference(name: str, ours: Tensor | None, theirs: Tensor) -> StageDifference:
    if ours is None or ours.shape != theirs.shape:
        return StageDifference(name, float("inf"), float("inf"))
    off = (ours.double() - theirs.double()).flatten()
    if not off.isfinite().all():
        return StageDifference(name, float("nan"), float("inf"))
    relative = off.norm() / theirs.double().norm().clamp_min(torch.finfo(torch.float64).tiny)
    return StageDifference(name, float(off.abs().max()), float(relative))


@contextmanager
def watch(outputs: Mapping[str, nn.Module], inputs: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """A context manager that records outputs and inputs of modules.

    Args:
        outputs: Stage name -> module whose output is recorded.
        inputs: Stage name -> module whose first argument is recorded.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, value: Any) -> None:
        seen[name] = value[0] if isinstance(value, tuple) else value

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args)) for name, module in inputs.items()
    ]
    handles += [
        module.register_forward_hook(lambda _, args, output, name=name: note(name, output))
        for name, module in outputs.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def own_stages(
    model: MaskedAutoencoder, imgs: Tensor, noise: Tensor, mask_ratio: float, *, decode: bool
) -> dict[str, Tensor]:
    """Run our model, and return the outputs of its stages under the reference's names.

    Args:
        model: The model, in the precision to compute in.
        imgs: Normalised images, (B, C, H, W).
        noise: Noise, (B, L); the patches with the lowest values stay visible.
        mask_ratio: Fraction of the patches that is masked.
        decode: Whether to run the decoder too.
    """
    imgs = imgs.to(model.cls_token.dtype)
    encoder, decoder = model.encoder, model.decoder
    outputs: dict[str, nn.Module] = {"patch embedding": model.patch_embed}
    outputs |= {f"encoder block {number}": block for number, block in enumerate(encoder.blocks)}
    outputs |= {"encoder norm": encoder.norm, "decoder embedding": decoder.decoder_embed}
    outputs |= {f"decoder block {number}": block for number, block in enumerate(decoder.blocks)}
    outputs |= {"decoder norm": decoder.norm}
    inputs = {"visible tokens": encoder.blocks[0], "decoder tokens": decoder.blocks[0]}
    with watch(outputs, inputs) as seen:
        latent, mask, ids_restore = model.forward_encoder(imgs, mask_ratio, noise)
        if not decode:
            return seen
        pred = seen["prediction"] = model.forward_decoder(latent, ids_restore)
    config = model.config
    for name, norm_pix_loss in (("loss, pixels", False), ("loss, normalised", True)):
        model.config = config.replace(norm_pix_loss=norm_pix_loss)
        seen[name] = model.forward_loss(imgs, pred, mask)
    model.config = config
    return seen
