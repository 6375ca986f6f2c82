"""Handles too many consecutive non-finite steps: writes a replay file, then rolls back or stops."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mae.checkpoints.save import save
from mae.data.loader import Batch
from mae.errors import CheckpointError, TrainingError
from mae.io.text import shown, typed
from mae.training.checkpointer import Checkpointer, newest_state, restore
from mae.training.data_module import DataModule
from mae.training.events import RolledBack
from mae.training.monitor import LEAST_LOSS_SCALE, FailedStep
from mae.training.position import Position
from mae.training.run import Run, TrainingState
from mae.training.tasks.base import Task

MOST_ROLLBACKS = 3
NAMES_IN_AN_ERROR = 3


def give_up(
    run: Run, state: TrainingState, task: Task, data: DataModule, checkpointer: Checkpointer, failed: FailedStep
) -> None:
    """Write a replay file; then roll back if ``--on-nan rollback`` is set and a state exists, else save and stop.

    Raises:
        TrainingError: The run stops.
    """
    step, loss, exact = failed
    count = len(step.losses)
    files = [shown(name) for name in data.names(step.before, count)]
    replay = run.folder.replay(run.ranks.rank, run.ranks.size)
    batches = data.again(step.before, count)
    inputs = [task.inputs(step.before, step.before.batch + number, batch) for number, batch in enumerate(batches)]
    about = {"step": step.after.step, "lr": step.lr, "loss": loss, "files": files, "precision": run.config.precision}
    suspicious = not bool(step.losses.isfinite().all()) or (math.isfinite(loss) and run.ranks.first)
    _write_replay(replay, checkpointer, step.before, batches, about | task.replayed(inputs), write=suspicious)
    if (
        run.config.on_nan == "rollback"
        and state.position.turn < MOST_ROLLBACKS
        and _roll_back(run, state, task, data, checkpointer)
    ):
        return
    if exact:
        before = dataclasses.replace(
            step.before,
            loss_sum=state.position.loss_sum,
            left_out=state.position.left_out - count,
            in_a_row=state.position.in_a_row - 1,
        )
        checkpointer.save(before, wait=True)
    raise _error(
        run,
        failed,
        files,
        f"to find the module where it began: maecli replay {typed(replay)}; " if replay.exists() else "",
    )


def _error(run: Run, failed: FailedStep, files: list[str], how_to_look: str) -> TrainingError:
    step, loss, _ = failed
    named = ", ".join(files[:NAMES_IN_AN_ERROR]) + (", ..." if len(files) > NAMES_IN_AN_ERROR else "")
    what = f"the loss became {loss}" if not math.isfinite(loss) else "the gradient is non-finite"
    if math.isfinite(loss) and run.config.precision == "fp16":
        what = f"fp16 gradients are non-finite even at a loss scale of {LEAST_LOSS_SCALE:g} or less"
    limit = run.config.nan_limit
    in_a_row = "this step was" if limit == 1 else f"{limit} steps in a row were"
    return TrainingError(
        f"{what} at step {step.after.step}, epoch {step.before.epoch}, lr {step.lr:.3g}, "
        f"and {in_a_row} skipped; its images: {named}",
        hint=how_to_look
        + "--resume may continue"
        + (" with --precision bf16" if run.config.precision == "fp16" else "")
        + (" with --on-nan rollback" if run.config.on_nan == "stop" else "")
        + "; or start a new run with --init, another --out and a lower --base-lr or a longer --warmup-epochs",
    )


def _roll_back(run: Run, state: TrainingState, task: Task, data: DataModule, checkpointer: Checkpointer) -> bool:
    """Restore the newest saved state and continue with another image order; False if there is no state."""
    checkpointer.finish()
    run.ranks.wait()
    saved, _ = newest_state(run.folder.states())
    if saved is None:
        return False
    run.folder.set_aside_newer(saved.path)
    restore(saved, state.step)
    turn = state.position.turn + 1
    state.position = dataclasses.replace(saved.position, turn=turn, in_a_row=0)
    data.seek(state.position)
    run.folder.log.cut(state.position)
    run.folder.log.add({"rolled_back_to": saved.path.name, "step": state.position.step, "turn": turn})
    task.roll_back(state.position)
    run.on_event(RolledBack(saved.path, state.position.step, turn))
    run.ranks.wait()
    return True


def _write_replay(
    path: Path,
    checkpointer: Checkpointer,
    position: Position,
    batches: Sequence[Batch],
    about: Mapping[str, Any],
    *,
    write: bool,
) -> None:
    """Save weights, images and the task's inputs of the step after a position; every process of a run must call this.

    A file that cannot be written is ignored, so that the original error is reported.
    """
    state = checkpointer.whole_state(keep=write)
    if not write:
        return
    kept = {"images": torch.stack([batch.images for batch in batches]), **about}
    with contextlib.suppress(CheckpointError):
        save(path, checkpointer.document(position, state, replay=kept))
