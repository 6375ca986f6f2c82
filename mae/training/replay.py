"""A step with a non-finite loss or gradient: saved in a file, and re-run to find the module it came from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.checkpoints import build_model, load_checkpoint
from mae.checkpoints.save import save
from mae.data.loader import Batch
from mae.errors import CheckpointError
from mae.io.text import shown
from mae.mae import MaskedAutoencoder
from mae.system.device import resolve_device, resolve_precision
from mae.training.checkpointer import Checkpointer
from mae.training.config import ReplayConfig
from mae.training.run_folder import Position
from mae.training.step import TrainingStep


@dataclasses.dataclass(frozen=True)
class Pass:
    """Result of a forward and backward pass over the images of the step.

    Attributes:
        precision: Precision of matrix products.
        loss: Mean over the step's batches.
        grad_norm: Euclidean norm over all parameters.
        first_module: The first module that made something infinite or no number of finite inputs; None for none.
        bad_gradients: Parameters whose gradient is not finite.
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
        step, lr, loss: As recorded by the run.
        files: Names of its images.
        passes: One in the run's precision and one in fp32.
    """

    step: int
    lr: float
    loss: float
    files: tuple[str, ...]
    passes: tuple[Pass, ...]


def write_replay(
    path: Path,
    checkpointer: Checkpointer,
    position: Position,
    batches: Sequence[Batch],
    about: Mapping[str, Any],
    *,
    write: bool,
) -> None:
    """Keep weights, images and the task's inputs of the step after a position; every process of a run must call this.

    A file that cannot be written is ignored, so that the original error is reported.
    """
    state = checkpointer.whole_state(keep=write)
    if not write:
        return
    kept = {"images": torch.stack([batch.images for batch in batches]), **about}
    with contextlib.suppress(CheckpointError):
        save(path, checkpointer.document(position, state, replay=kept))


def replay(config: ReplayConfig) -> Replay:
    """Re-run a step in the run's precision and in fp32, checking the output of every module.

    Raises:
        CheckpointError: The file is not a replay file of a run.
        ConfigError: No such device here.
    """
    checkpoint = load_checkpoint(config.file)
    kept = checkpoint.extra.get("replay")
    if isinstance(kept, Mapping) and "task" in kept:
        raise CheckpointError(
            f"{config.file} is a step of maecli {shown(str(kept['task']), 40)}; replay repeats those of maecli pretrain"
        )
    if not isinstance(kept, Mapping) or not {"images", "noise", "mask_ratio", "precision", "files"} <= set(kept):
        raise CheckpointError(
            f"{config.file} holds no step to take again", hint="give the replay.pth in a run's folder"
        )
    device = resolve_device(config.device)
    wanted = kept["precision"] if config.precision == "auto" else config.precision
    wanted = wanted if (wanted, device.type) != ("fp16", "cpu") else "fp32"
    model = build_model(checkpoint)[0].to(device).train()
    passes = [_take(model, kept, precision) for precision in dict.fromkeys((resolve_precision(wanted, device), "fp32"))]
    return Replay(kept["step"], kept["lr"], kept["loss"], tuple(kept["files"]), tuple(passes))


def _take(model: MaskedAutoencoder, kept: Mapping[str, Any], precision: str) -> Pass:
    step = TrainingStep(model, precision, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    share = 1 / len(kept["images"])
    with _first_to_fail(model) as first:
        losses = [
            float(step.backward(images, kept["mask_ratio"], noise, share=share))
            for images, noise in zip(kept["images"], kept["noise"], strict=True)
        ]
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
        def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            came = all(bool(x.isfinite().all()) for x in inputs if isinstance(x, Tensor))
            if came and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                failed.append(name)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield failed
    finally:
        for hook in hooks:
            hook.remove()
