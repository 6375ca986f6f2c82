"""A step with a non-finite loss or gradient: saved in a file, and re-run to find the module it came from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mae.checkpoints import build_model, load_checkpoint
from mae.checkpoints.classifiers import pool_of
from mae.checkpoints.load import Checkpoint
from mae.errors import CheckpointError, MaeError, is_out_of_memory
from mae.io.text import first_line
from mae.models.classifier import ImageClassifier
from mae.system.device import resolve_device, resolve_precision
from mae.training.config import ReplayConfig
from mae.training.step import TrainingStep
from mae.training.tasks.classification import ClassificationLoss
from mae.training.tasks.finetune import FinetuneLoss


@dataclasses.dataclass(frozen=True)
class Pass:
    """Result of a forward and backward pass over the batches of the step.

    Attributes:
        precision: Precision of matrix products.
        loss: Mean loss of the step's batches.
        grad_norm: Euclidean norm of the gradient over all parameters.
        first_module: Name of the first module whose output is non-finite although its inputs are finite; None if every
            output is finite.
        bad_gradients: Number of parameters with a non-finite gradient.
    """

    precision: str
    loss: float
    grad_norm: float
    first_module: str | None
    bad_gradients: int


@dataclasses.dataclass(frozen=True)
class Replay:
    """Result of re-running a step.

    Attributes:
        step, lr, loss: Number, learning rate and loss of the step, as recorded by the run.
        files: Names of the step's images.
        passes: Results in the run's precision and in fp32; one result if both are the same.
    """

    step: int
    lr: float
    loss: float
    files: tuple[str, ...]
    passes: tuple[Pass, ...]


def replay(config: ReplayConfig) -> Replay:
    """Re-run a step in the run's precision and in fp32, checking the output of every module.

    Raises:
        CheckpointError: The file is not a replay file of a run.
        ConfigError: This machine has no such device.
        MaeError: The memory is full.
    """
    wanted_file = "give the replay.pth in a run's folder"
    try:
        checkpoint = load_checkpoint(config.file)
    except CheckpointError as error:
        near = error.hint is not None and error.hint.startswith("did you mean")
        raise CheckpointError(error.message, hint=error.hint if near else wanted_file) from None
    kept = checkpoint.extra.get("replay")
    if not isinstance(kept, Mapping) or not {"images", "precision", "files", "step", "lr", "loss"} <= set(kept):
        raise CheckpointError(f"{config.file} is not a replay file", hint=wanted_file)
    device = resolve_device(config.device)
    wanted = kept["precision"] if config.precision == "auto" else config.precision
    wanted = wanted if (wanted, device.type) != ("fp16", "cpu") else "fp32"
    precisions = dict.fromkeys((resolve_precision(wanted, device), "fp32"))
    try:
        model, loss, inputs = _task(checkpoint, kept)
        model.to(device).train()
        scaler = checkpoint.scaler or {}
        passes = [_take(model, loss, kept["images"], inputs, precision, scaler) for precision in precisions]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            hint = None if device.type == "cpu" else "--device cpu re-runs the step in the host's memory"
            raise MaeError("out of memory", hint=hint) from None
        raise CheckpointError(f"{config.file} is damaged: {first_line(error)}") from None
    return Replay(kept["step"], kept["lr"], kept["loss"], tuple(kept["files"]), tuple(passes))


def _task(
    checkpoint: Checkpoint, kept: Mapping[str, Any]
) -> tuple[nn.Module, nn.Module | None, Sequence[Sequence[Any]]]:
    """The model of a step, its loss (None for pre-training's), and each batch's inputs beside the images."""
    if "task" not in kept:
        return build_model(checkpoint)[0], None, [(kept["mask_ratio"], noise) for noise in kept["noise"]]
    state, probe = checkpoint.state, kept["task"] == "linprobe"
    classes = len(state["head.1.weight" if probe else "head.weight"])
    fc_norm = "fc_norm.weight" in state
    model = ImageClassifier(checkpoint.config, classes, pool=pool_of(checkpoint), fc_norm=fc_norm, probe=probe)
    model.load_state_dict(state)
    if probe:
        model.freeze_encoder()
        return model, ClassificationLoss(model), kept["inputs"]
    return model, FinetuneLoss(model, kept["smoothing"]), kept["inputs"]


def _take(
    model: nn.Module,
    loss: nn.Module | None,
    images: Sequence[Tensor],
    inputs: Sequence[Sequence[Any]],
    precision: str,
    scaler: dict[str, Any],
) -> Pass:
    """One pass; ``scaler`` is the state of the run's gradient scaler, {} if it had none."""
    step = TrainingStep(model, precision, loss=loss, optimizer=lambda: torch.optim.SGD(model.parameters(), 0.0))
    if scaler:
        step.scaler.load_state_dict(scaler)
    share = 1 / len(images)
    with _first_to_fail(model) as first:
        losses = [
            float(step.backward(batch, *beside, share=share)) for batch, beside in zip(images, inputs, strict=True)
        ]
    step.scaler.unscale_(step.optimizer)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    bad = sum(not bool(gradient.isfinite().all()) for gradient in gradients)
    model.zero_grad(set_to_none=True)
    return Pass(precision, sum(losses) * share, norm, next(iter(first), None), bad)


@contextlib.contextmanager
def _first_to_fail(model: nn.Module) -> Iterator[list[str]]:
    """Names of modules with finite inputs and a non-finite output, in the order of the forward pass."""
    failed: list[str] = []

    def watch(name: str) -> Any:
        def check(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            finite_inputs = all(bool(x.isfinite().all()) for x in inputs if isinstance(x, Tensor))
            if finite_inputs and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                failed.append(name)

        return check

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield failed
    finally:
        for hook in hooks:
            hook.remove()
