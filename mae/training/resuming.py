"""Resuming a run: finds the state, compares the settings, and refuses changes that would alter the run."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mae.errors import ConfigError
from mae.io.text import shown, typed
from mae.options import flag_name
from mae.training.checkpointer import SavedState, newest_state
from mae.training.classifier_config import RunConfig
from mae.training.identity import OnResume, on_resume
from mae.training.plan import TrainingPlan
from mae.training.position import Position
from mae.training.run_folder import RunFolder

# Set by the command that resumes, or compared separately.
_NOT_COMPARED = ("out", "auto_resume", "batch_size")


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting whose value is changed on resuming: plain values before and now, None if not set."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name.replace('_', '-')} {_text(self.before)} -> {_text(self.now)}"


@dataclasses.dataclass(frozen=True)
class Resumption:
    """The state that a run resumes from, and what changes; a new run has no state and starts at step 0.

    Attributes:
        saved: The state; None if the run has not saved one.
        changes: Settings that differ from the recorded ones; all of them may change.
        warnings: Messages about newer states that cannot be read.
        request: The option that asked to resume, with the folder, for messages.
    """

    saved: SavedState | None = None
    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()
    request: str = ""

    @property
    def position(self) -> Position:
        """Position of the state."""
        return self.saved.position if self.saved else Position()

    def changed(self, *names: str) -> bool:
        """Whether any of these settings has changed."""
        return any(change.name in names for change in self.changes)

    def other_processes(self, processes: int) -> bool:
        """Whether the number of processes has changed."""
        return self.saved is not None and self.saved.identity.get("processes", 1) != processes

    @property
    def global_batch_size(self) -> int | None:
        """Images per batch over all processes, as recorded by the state; None for a new run."""
        return self.saved.identity["batch_size"] if self.saved else None

    def rescheduled(self, plan: TrainingPlan) -> Rescheduled | None:
        """The effect of a changed number of epochs on the learning rate; None if the number has not changed."""
        length = next((change for change in self.changes if change.name == "epochs"), None)
        if length is None:
            return None
        at = self.position.epoch + self.position.batch / plan.batches_per_epoch
        before = dataclasses.replace(plan.schedule, epochs=length.before)
        return Rescheduled(length.before, length.now, before.at(at), plan.schedule.at(at))

    def log_entry(self, plan: TrainingPlan) -> dict[str, Any] | None:
        """The entry of ``log.jsonl`` about changes that affect the losses; None if there are none."""
        changed = {one.name: [one.before, one.now] for one in self.changes if on_resume(one.name) is not OnResume.FREE}
        if not changed:
            return None
        epoch = self.position.epoch + self.position.batch / plan.batches_per_epoch
        entry = {"changed": changed, "step": self.position.step, "epoch": round(epoch, 4)}
        schedule = self.rescheduled(plan)
        return entry | ({"lr": schedule.lr, "lr_before": schedule.lr_before} if schedule else {})

    def seconds_left(self, plan: TrainingPlan, images_per_second: float | None, processes: int) -> float | None:
        """Estimated seconds left, from the throughput in the log; None if it is unknown, or was another machine's."""
        elsewhere = self.changed("device", "precision", "compile", "shard") or self.other_processes(processes)
        if images_per_second is None or elsewhere:
            return None
        return plan.batches_left(self.position.step) * plan.global_batch_size / images_per_second

    def describe_changes(self, plan: TrainingPlan) -> tuple[str, ...]:
        """A sentence for the user about each kind of change."""
        notes = []
        if schedule := self.rescheduled(plan):
            notes.append(str(schedule))
        if rounding := [str(change) for change in self.changes if on_resume(change.name) is OnResume.ROUNDING]:
            notes.append(f"{', '.join(rounding)}: from here on losses and weights differ by rounding")
        if moved := [change for change in self.changes if change.name == "data"]:
            notes.append(f"the images were in {_text(moved[0].before)} before; their names are the same")
        others = [change for change in self.changes if change.name != "data"]
        if free := [str(change) for change in others if on_resume(change.name) is OnResume.FREE]:
            notes.append(f"{', '.join(free)}: losses and weights stay the same")
        return tuple(notes)


@dataclasses.dataclass(frozen=True)
class Rescheduled:
    """A changed number of epochs, and the learning rate at the position of resuming, before and after the change."""

    epochs_before: int
    epochs: int
    lr_before: float
    lr: float

    def __str__(self) -> str:
        what = "stretched" if self.epochs > self.epochs_before else "shortened"
        return (
            f"epochs {self.epochs_before} -> {self.epochs}: the cosine is {what}; the learning rate continues at "
            + (f"{self.lr:.3g}" if self.lr == self.lr_before else f"{self.lr:.3g} instead of {self.lr_before:.3g}")
        )


def take_up(run: RunFolder, config: RunConfig, recorded: Mapping[str, Any] | None, processes: int) -> Resumption:
    """Find the state to resume from, and refuse changed settings that would alter the run.

    Args:
        run: The folder.
        config: The present settings, with device, precision and decoder resolved.
        recorded: The settings in the run's folder, as plain values by name; None if it has none.
        processes: Number of processes now.

    Raises:
        ConfigError: There is no run, or a setting may not change.
        CheckpointError: No state can be read.
    """
    request = f"{'--resume' if config.resume is not None else '--auto-resume:'} {shown(run.path)}"
    saved, warnings = newest_state(run.states())
    if saved is None and recorded is None:
        raise ConfigError(
            f"{request}: there is no checkpoint-last.pth and no config.toml in it", hint="give a run's folder"
        )
    now = config.as_plain()
    before = dict(recorded or {}) | (saved.settings if saved else {})
    changes = [
        Change(name, before[name], value)
        for name, value in now.items()
        if name in before and before[name] != value and name not in _NOT_COMPARED
    ]
    changes += _batch_change(saved, before.get("batch_size", now["batch_size"]), now["batch_size"], processes)
    changes.sort(key=lambda change: [*now].index(change.name))
    fixed = [(flag_name(one.name), one.before, one.now) for one in changes if on_resume(one.name) is OnResume.FIXED]
    if fixed:
        raise another_run(fixed, saved, request, run)
    if saved is not None:
        _check_not_shorter(saved.position, now["epochs"], run, resume=config.resume is not None)
    if config.resume is None:
        known = [one["epochs"] for one in (recorded, saved.settings if saved else None) if one and "epochs" in one]
        _check_extended(max(known, default=now["epochs"]), now["epochs"], request, run)
    return Resumption(saved, tuple(changes), warnings, request)


def check_same_run(resumption: Resumption, now: Mapping[str, Any], run: RunFolder) -> None:
    """Refuse to resume with other images, another batch size or another model.

    Args:
        resumption: State to resume from.
        now: Identity of the run now: that of its plan, and the task's ``identity``.
        run: Its folder.

    Raises:
        ConfigError: They differ from those that the state was trained with.
    """
    if resumption.saved is None:
        return
    before = resumption.saved.identity
    differ = [name for name in now if before.get(name, now[name]) != now[name]]
    if "images" in differ:  # what follows from their number need not be told
        differ = [name for name in differ if name == "images" or name in ("seed", "model", "classes")]
    rows: list[tuple[str, Any, Any]] = []
    for name in differ:
        if name == "model":
            rows += _model_rows(before["model"], now["model"])
        else:
            rows.append((_IN_WORDS.get(name, flag_name(name)), before[name], now[name]))
    if rows:
        raise another_run(rows, resumption.saved, resumption.request, run)


_IN_WORDS = {"classes": "classes", "images": "number of images", "images_digest": "the images' names (digest)"}


def another_run(
    rows: Iterable[tuple[str, Any, Any]], saved: SavedState | None, request: str, run: RunFolder
) -> ConfigError:
    """An error with a table of what differs: (name, before, now)."""
    if saved is not None:
        hint = f"put it back, or start a new run from its weights with --init {typed(saved.path)} and another --out"
    else:
        hint = f"restore it, or start again: nothing is saved in {shown(run.path)} yet, so --out may name it"
    table = _table([("option", "before", "now"), *((name, _text(before), _text(now)) for name, before, now in rows)])
    return ConfigError(f"{request} would not be the same run; what differs:", hint=hint, details=table)


def _batch_change(saved: SavedState | None, known: int, now: int, processes: int) -> list[Change]:
    """The change of ``--batch-size``, if the global batch size is not the same.

    Args:
        saved: The state.
        known, now: Images per batch and process, as the run was started and as it is resumed.
        processes: Number of processes now.
    """
    total = saved.identity["batch_size"] if saved else None
    if now == known or now * processes == total:
        return []
    if total is None or processes == 1:
        return [Change("batch_size", total or known, now)]
    return [Change("batch_size", f"{total} in all", f"{now} x {processes} processes")]


def _check_not_shorter(position: Position, epochs: int, run: RunFolder, *, resume: bool) -> None:
    """Refuse fewer epochs than were begun."""
    begun = position.epoch + (position.batch > 0)
    if epochs < begun:
        done = f"{position.epoch} are done" + (" and one is under way" if position.batch else "")
        # Without --epochs, --resume takes the run's number, but --auto-resume the default.
        hint = f"give at least {begun}" + (", or leave --epochs out" if resume else "")
        raise ConfigError(
            f"--epochs {epochs} is less than the run in {shown(run.path)} has behind it: {done}", hint=hint
        )


def _check_extended(longest: int, epochs: int, request: str, run: RunFolder) -> None:
    """Refuse to shorten a run that was extended, when the command that started it is repeated."""
    if epochs < longest:
        raise ConfigError(
            f"{request} with --epochs {epochs} would take back that it was extended to {longest}",
            hint=f"give --epochs {longest}; --resume {typed(run.path)} --epochs {epochs} makes it shorter",
        )


def _model_rows(before: str, now: str) -> list[tuple[str, Any, Any]]:
    """Rows for the differing sizes of two models, given by their ``repr``."""
    fields = _fields(before), _fields(now)
    if None in fields:
        return [("model", before, now)]
    old, new = (values or {} for values in fields)
    return [(f"model: {name}", old[name], new[name]) for name in new if name in old and old[name] != new[name]]


def _fields(text: str) -> Mapping[str, Any] | None:
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _text(value: Any) -> str:
    """A plain value as text."""
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.12g}"
    return " ".join(map(_text, value)) if isinstance(value, list | tuple) else shown(value)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
