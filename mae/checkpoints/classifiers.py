"""Classifiers in checkpoint files: the official layout of fine-tuned models, plus the names of the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints.build import compare_shapes, fill, fit_tables, is_decoder, refuse_misfit, refuse_not_finite
from mae.checkpoints.load import Checkpoint
from mae.errors import CheckpointError
from mae.io.text import shown, typed
from mae.models.classifier import BATCH_NORM_EPS, ImageClassifier

_BATCH_NORM, _LINEAR = "head.0.", "head.1."  # prefixes in an official linear probe
_PROBE = {f"{_LINEAR}weight", f"{_LINEAR}bias", f"{_BATCH_NORM}running_mean", f"{_BATCH_NORM}running_var"}


def has_head(checkpoint: Checkpoint) -> bool:
    """Whether a file holds a classification head."""
    return any(names <= set(checkpoint.state) for names in ({"head.weight", "head.bias"}, _PROBE))


def about_classes(classes: Sequence[str], pool: str) -> dict[str, Any]:
    """Metadata about a head in our own files: names of the classes, and pooling."""
    return {"classes": list(classes), "pool": pool}


def class_names(checkpoint: Checkpoint) -> tuple[tuple[str, ...], bool]:
    """Names of the classes, and whether they come from the file; otherwise they are numbers."""
    count = len(folded(checkpoint.state)["head.weight"])
    told = _told(checkpoint).get("classes")
    if isinstance(told, list) and len(told) == count and all(isinstance(name, str) for name in told):
        return tuple(told), True
    return tuple(str(number) for number in range(count)), False


def pool_of(checkpoint: Checkpoint) -> str:
    """Pooling before the head: as given by the file, else "mean" if it has ``fc_norm``, else "cls"."""
    told = _told(checkpoint).get("pool")
    if told in ("mean", "cls"):
        return str(told)
    return "mean" if "fc_norm.weight" in checkpoint.state else "cls"


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with a linear head: the batch norm of a linear probe is folded into its linear layer.

    The official one has no parameters; those of another are folded too.

    Raises:
        CheckpointError: The two do not fit together.
    """
    if not set(state) >= _PROBE:
        return dict(state)
    scale = (state[f"{_BATCH_NORM}running_var"].double() + BATCH_NORM_EPS).rsqrt()
    weight, bias = (state[f"{_LINEAR}{name}"].double() for name in ("weight", "bias"))
    mean = state[f"{_BATCH_NORM}running_mean"].double()
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not scale.shape == mean.shape == weight.shape[1:]:
        raise CheckpointError("the batch norm head.0 and the layer head.1 of the linear probe do not fit together")
    if f"{_BATCH_NORM}weight" in state:
        bias = bias + weight @ state[f"{_BATCH_NORM}bias"].double()
        scale = scale * state[f"{_BATCH_NORM}weight"].double()
    weight = weight * scale
    bias = bias - weight @ mean
    plain = {key: tensor for key, tensor in state.items() if not key.startswith((_BATCH_NORM, _LINEAR))}
    return plain | {"head.weight": weight.float(), "head.bias": bias.float()}


def build_classifier(
    checkpoint: Checkpoint, *, img_size: int | tuple[int, int] | None = None
) -> tuple[ImageClassifier, tuple[str, ...]]:
    """Build the classifier of a file; weights stay memory-mapped from the file until used.

    Args:
        checkpoint: What ``load_checkpoint`` read.
        img_size: Another image size, (rows, columns) or one number; the position table follows.

    Returns:
        The model in evaluation mode and float32, and what a user should be told.

    Raises:
        CheckpointError: The file has no head, lacks another tensor, or one has another shape or holds NaN.
    """
    if not has_head(checkpoint):
        raise no_head(checkpoint)
    config = checkpoint.config if img_size is None else checkpoint.config.replace(img_size=img_size)
    fitted, notes = fit_tables(checkpoint, config.grid)
    state = folded({key: tensor for key, tensor in fitted.items() if not is_decoder(key)})
    if state["head.weight"].ndim != 2:
        raise CheckpointError(
            f"{checkpoint.path}: head.weight must be a matrix; got {tuple(state['head.weight'].shape)}"
        )
    with torch.device("meta"):
        model = ImageClassifier(
            config, len(state["head.weight"]), pool=pool_of(checkpoint), fc_norm="fc_norm.weight" in state
        )
    wanted = model.state_dict()
    unexpected = [key for key in state if key not in wanted]
    fill(model, checkpoint.path, {key: tensor for key, tensor in state.items() if key in wanted}, wanted)
    if unexpected:
        notes += (f"{len(unexpected)} tensors of the file stay unused, for instance {shown(unexpected[0], 80)}",)
    return model.eval(), tuple(note for note in notes if not is_decoder(note))


def load_encoder(model: ImageClassifier, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Copy the encoder of a checkpoint of any kind into a classifier; its head is not changed.

    Returns:
        What a user should be told.

    Raises:
        CheckpointError: A tensor of the encoder is missing, has another shape or holds NaN.
    """
    state, notes = fit_tables(checkpoint, model.config.grid)
    wanted = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(("head.", "fc_norm."))}
    state = {key: tensor for key, tensor in state.items() if key in wanted}
    missing, _, misshapen = compare_shapes(state, wanted)
    if {"norm.weight", "norm.bias"} <= set(missing) and checkpoint.kind == "fine-tuned":
        notes += ("the file is fine-tuned and has no final encoder norm: that norm starts fresh",)
        missing = [key for key in missing if not key.startswith("norm.")]
    refuse_misfit(checkpoint.path, missing, misshapen)
    refuse_not_finite(checkpoint.path, state)
    if checkpoint.kind == "fine-tuned":
        notes += ("the file is fine-tuned: its encoder has seen labels, and its head is not used",)
    model.load_state_dict(state, strict=False)
    return tuple(note for note in notes if not is_decoder(note))


def no_head(checkpoint: Checkpoint) -> CheckpointError:
    """The error for a file without a classification head."""
    kind = "a masked autoencoder" if checkpoint.has_decoder else "an encoder alone"
    return CheckpointError(
        f"{shown(checkpoint.named)} holds no classification head: it is {kind}, so it cannot name classes",
        hint=f"train one on labelled images: maecli finetune DATA --init {typed(checkpoint.named)}",
    )


def _told(checkpoint: Checkpoint) -> Mapping[str, Any]:
    own = checkpoint.extra.get("maecli")
    return own if isinstance(own, Mapping) else {}
