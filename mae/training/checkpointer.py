"""Writes a run's states while training continues, and reads the newest complete one."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints import load_checkpoint
from mae.checkpoints.save import checkpoint_document, save
from mae.errors import CheckpointError, MaeError, TrainingError, is_out_of_memory
from mae.io.text import first_line, typed
from mae.system.distributed import Ranks
from mae.system.environment import available_memory
from mae.training.identity import recorded_settings
from mae.training.parallel import is_shard, whole
from mae.training.position import Position
from mae.training.run_folder import SHARDS, WHOLE, RunFolder, link_or_copy
from mae.training.step import TrainingStep


@dataclasses.dataclass(frozen=True)
class SavedState:
    """A state that a run can be resumed from; its tensors stay in its file until ``restore`` reads them.

    Attributes:
        path: File or folder of the state.
        position: Position of the run.
        identity: What must not change on resuming; at least ``batch_size``, the global batch size.
        settings: Settings that affect the losses, as far as the state records them.
    """

    path: Path
    position: Position
    identity: dict[str, Any]
    settings: dict[str, Any]


@dataclasses.dataclass
class Checkpointer:
    """Writes a run's states in a background thread while training continues.

    The thread gets a copy of weights and moments, so that a file has the state of one step. A sharded model is
    written by all processes together, and training waits for it.

    Attributes:
        run: Folder of the run.
        training_step: Model, optimiser and scaler.
        ranks: The processes that share the run; the first one writes, or each writes its shards.
        args: The run's options under their official names.
        identity: What must not change when the run is resumed.
        minutes: Longest time between two states, in minutes.
        keep_last: Number of the newest states to keep; older ones are deleted.
        keep_every: Epochs between two checkpoints that are never deleted (``checkpoint-EPOCH.pth``).
        about: Metadata of the checkpoint in addition to the model's sizes.
    """

    run: RunFolder
    training_step: TrainingStep
    ranks: Ranks
    args: Mapping[str, Any]
    identity: Mapping[str, Any]
    minutes: float
    keep_last: int
    keep_every: int = 1
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._saved_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def keeps(self, epochs: int) -> bool:
        """Whether ``checkpoint-EPOCH.pth`` is to be written after ``epochs`` finished epochs."""
        return epochs % self.keep_every == 0

    def due(self) -> bool:
        """Whether it is time to save. Also true if writing failed; ``save`` then raises the error."""
        return self._failure is not None or time.monotonic() - self._saved_at >= 60 * self.minutes

    def save(self, position: Position, *, keep: bool = False, wait: bool = False) -> None:
        """Write the state at a position.

        Args:
            position: Position of the run.
            keep: Also write it as ``checkpoint-EPOCH.pth``.
            wait: Return only when it is on the disk.

        Raises:
            TrainingError: This state or the previous one could not be written.
        """
        self.finish()
        if self.training_step.parallel.sharded:
            if keep:
                self._save_gathered(position)
            self._save_shards(position)
        elif self.ranks.first:
            state = self.training_step.state()
            write = self._writer(position, keep)
            on_host = self.training_step.device.type == "cpu"
            if copy := not (wait and on_host) and _room_for_copy(state):
                state = _copied(state)  # tensors saved from a GPU need that GPU when the file is loaded
            if wait or not copy:
                write(state)
                self.check()
            else:
                self._thread = threading.Thread(target=write, args=(state,), daemon=True, name="checkpoint")
                self._thread.start()
        if wait:
            self.finish()
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Wait until the pending state is written.

        Raises:
            TrainingError: The state could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Wait until the pending state is written, and raise no error.

        A thread that is inside torch when the interpreter ends would abort the process.
        """
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise the error of the writing thread, if any."""
        if self._failure is None:
            return
        failure, self._failure = self._failure, None
        left = self.run.states()
        what = f"cannot write {self.run.checkpoint}"
        if isinstance(failure, MaeError):
            message = failure.message
        elif isinstance(failure, OSError):
            message = f"{what}: {failure.strerror or failure}"
        else:
            reason = "out of memory" if isinstance(failure, MemoryError) else f"{type(failure).__name__}: {failure}"
            message = f"{what}: {reason}"
        raise TrainingError(message, hint=f"the state before it is unchanged: {left[0]}" if left else None) from failure

    def _writer(self, position: Position, keep: bool) -> Callable[[dict[str, Any]], None]:
        def write(state: dict[str, Any]) -> None:
            new = self.run.path / ".checkpoint.tmp"
            try:
                save(new, self.document(position, state))
                if keep:  # before the state is in place: a run that is killed between them repeats the epoch
                    link_or_copy(new, self.run.kept_checkpoint(position.epoch - 1))
                self.run.place(new, WHOLE, self.keep_last)
            except CheckpointError as error:
                self._failure = CheckpointError(error.message.replace(str(new), str(self.run.checkpoint)))
            except Exception as error:  # raised by ``check`` in the main thread
                self._failure = error

        return write

    def document(self, position: Position, state: Mapping[str, Any], **extra: Any) -> dict[str, Any]:
        """A state in the official trainer's layout."""
        return checkpoint_document(
            state["model"],
            self.training_step.model.config,
            optimizer=state["optimizer"],
            epoch=position.epoch - 1,
            scaler=state["scaler"],
            args=self.args,
            extra={"maecli": self._about(position), **extra},
        )

    def _about(self, position: Position) -> dict[str, Any]:
        return {**self.about, "position": dataclasses.asdict(position), "run": dict(self.identity)}

    def _save_shards(self, position: Position) -> None:
        from mae.training.sharded import write_shards

        new = self.run.path / ".checkpoint.tmp"
        about = {**self._about(position), "args": dict(self.args)}
        try:
            write_shards(new, self.training_step, about, self.ranks)
            if self.ranks.first:
                self.run.place(new, SHARDS, self.keep_last)
        except OSError as error:
            raise TrainingError(f"cannot write {self.run.path}: {error.strerror or error}") from None
        self.ranks.wait()  # no process starts the next state before this one is in place

    def whole_state(self, *, keep: bool) -> dict[str, Any]:
        """State of model, optimiser and scaler with full tensors.

        Every process must call this; those with ``keep`` get the tensors, the others None.
        """
        state = self.training_step.state()
        return _gathered(state, keep=keep) if self.training_step.parallel.sharded else state

    def _save_gathered(self, position: Position) -> None:
        """Write the official file of a sharded model."""
        state = self.whole_state(keep=self.ranks.first)
        if self.ranks.first:
            try:
                save(self.run.kept_checkpoint(position.epoch - 1), self.document(position, state))
            except CheckpointError as error:
                raise TrainingError(error.message) from None


def newest_state(states: Iterable[Path]) -> tuple[SavedState | None, tuple[str, ...]]:
    """The newest readable one of a run's states (None if there are none), and a message for each newer unreadable one.

    Raises:
        CheckpointError: There are states, but none of them can be read.
    """
    broken: list[CheckpointError] = []
    for path in states:
        try:
            state = _load(path)
        except CheckpointError as error:
            broken.append(error)
            continue
        where = f"epoch {state.position.epoch}, step {state.position.step}"
        return state, tuple(f"{error.message}; resuming from {path} instead ({where})" for error in broken)
    if broken:
        raise broken[0]
    return None, ()


def restore(state: SavedState, training_step: TrainingStep) -> None:
    """Copy the tensors of a state into a training step.

    Raises:
        CheckpointError: The state is damaged, or its tensors do not fit the model.
    """
    if state.path.suffix == SHARDS:
        from mae.training.sharded import restore_shards

        restore_shards(state.path, training_step)
        return
    checkpoint = load_checkpoint(state.path)
    try:
        training_step.restore(checkpoint.state, checkpoint.optimizer or {}, checkpoint.scaler or {})
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        message = f"{state.path} is damaged, or belongs to another model: {first_line(error)}"
        raise CheckpointError(message) from None


def _load(path: Path) -> SavedState:
    about: Any
    if path.suffix == SHARDS:
        from mae.checkpoints.sharded import read_about

        about = read_about(path)
        args = about.get("args")
    else:
        checkpoint = load_checkpoint(path)
        about, args = checkpoint.extra.get("maecli"), checkpoint.args
        if not isinstance(about, Mapping) or "position" not in about or checkpoint.optimizer is None:
            raise CheckpointError(
                f"{path} does not record its epoch and step, so training cannot be resumed from it",
                hint=f"--init {typed(path)} starts a new run from its weights",
            )
    try:
        position, identity = Position.from_plain(about["position"]), _identity(about["run"])
        _check_counts(position, identity)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its record of the run is invalid ({error})") from None
    return SavedState(path, position, identity, recorded_settings(identity, args))


# Entries of a state's identity: name in older versions -> name now.
_OLDER_NAMES = {"pictures": "images", "pictures_digest": "images_digest"}
# Types of the entries of a state's identity; older states have fewer entries.
_COUNTS = ("images", "batch_size", "accum_iter", "processes")
_KINDS = {"images_digest": str, "seed": int, "model": str, "compiled": bool, "settings": dict, "classes": list}


def _identity(values: Any) -> dict[str, Any]:
    """The validated identity of a state."""
    if not isinstance(values, dict) or "batch_size" not in values:
        raise ValueError(f"wanted a dict with batch_size as the run's identity; got {type(values).__name__}")
    identity = {_OLDER_NAMES.get(str(name), str(name)): value for name, value in values.items()}
    bad = [name for name in _COUNTS if name in identity and not (type(identity[name]) is int and identity[name] > 0)]
    bad += [name for name, kind in _KINDS.items() if name in identity and type(identity[name]) is not kind]
    if bad:
        raise ValueError(f"{bad[0]} has an invalid value")
    return identity


def _check_counts(position: Position, identity: Mapping[str, Any]) -> None:
    """Check that a position's step follows from its epoch and batch."""
    if not {"images", "batch_size", "accum_iter"} <= set(identity):
        return
    batches = identity["images"] // identity["batch_size"]
    steps = math.ceil(batches / identity["accum_iter"])
    wanted = position.epoch * steps + math.ceil(position.batch / identity["accum_iter"])
    if position.batch > batches or position.step != wanted:
        raise ValueError(f"epoch {position.epoch}, batch {position.batch} and step {position.step} do not agree")


def _copied(value: Any) -> Any:
    """A copy of nested dicts and lists, with their tensors in the host's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _gathered(value: Any, *, keep: bool) -> Any:
    """The same nested dicts and lists with full tensors in the host's memory; without ``keep``, None for each tensor.

    Every process must call this.
    """
    if isinstance(value, Tensor):
        tensor = whole(value) if is_shard(value) else value
        return tensor.detach().to("cpu", copy=True) if keep else None
    if isinstance(value, dict):
        return {key: _gathered(item, keep=keep) for key, item in value.items()}
    return [_gathered(item, keep=keep) for item in value] if isinstance(value, list) else value


def _room_for_copy(state: Mapping[str, Any]) -> bool:
    """Whether the host has enough free memory for a copy of weights and moments."""
    available = available_memory()
    if available is None:
        return True
    tensors = list(state["model"].values())
    tensors += [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))
    return 1.25 * needed < available
