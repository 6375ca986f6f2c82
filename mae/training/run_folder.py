"""The folder of a run: config, log, saved states, previews and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import socket
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeGuard, TypeVar

import tomli_w

from mae.checkpoints.run_states import CLASSIFIER, STATE, run_states, state_slot
from mae.checkpoints.run_states import SHARDS as SHARDS
from mae.checkpoints.run_states import WHOLE as WHOLE
from mae.data.sources.scan import Unreadable
from mae.errors import ConfigError, TrainingError
from mae.io.files import refuse_inside, refuse_place, write_atomically
from mae.io.locks import take_lock
from mae.io.text import shown, typed
from mae.io.urls import url_of
from mae.options import build_config
from mae.system.environment import ENVIRONMENT_FILE, environment
from mae.training.classifier_config import ClassifierConfig
from mae.training.config import CONFIG_FILE, PretrainConfig, is_run_config, read_run_settings

# Names the process that holds the lock; not in the locked file, which no other process can read on Windows.
_HOLDER = ".lock-holder"
UNREADABLE_FILE = "unreadable.tsv"
RESULT_FILE = "result.json"  # test result of finetune and linprobe
_UNREADABLE_HEAD = "file\treason\n"
LOG_FILE = "log.jsonl"
# Files that are written before the first step and removed if the start fails. The list of unreadable images stays,
# since it may be the reason.
_OF_A_START = (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, "previews", "tensorboard", "wandb", "mlflow", ".trackers.json")
Config = TypeVar("Config", bound=PretrainConfig | ClassifierConfig)
_PROBED = ("val_loss", "knn", "linear", "rank_me", "val_seconds", "probe_seconds")
_PACE_OF = 9  # newest epochs, or logged steps, whose median throughput is taken


@dataclasses.dataclass(frozen=True)
class Position:
    """Progress of a run.

    Attributes:
        epoch: The current epoch, from 0.
        batch: Finished batches of this epoch, always whole optimiser steps.
        step: Finished optimiser steps of the whole run.
        loss_sum, lr_sum: Sums over the epoch's batches, so that a resumed epoch reports the same mean.
        left_out: Number of the epoch's batches whose step was skipped; they are not part of the means.
        in_a_row: Number of consecutive skipped steps up to this position.
        turn: Number of rollbacks; each one changes the order of the images.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    lr_sum: float = 0.0
    left_out: int = 0
    in_a_row: int = 0
    turn: int = 0

    @classmethod
    def from_plain(cls, values: Any) -> Position:
        """Parse the position of a saved state; missing entries (older versions) are 0.

        Raises:
            ValueError: An entry has an invalid value.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or not {"epoch", "batch", "step"} <= set(values) <= set(kinds):
            raise ValueError("wanted a dict with epoch, batch and step as the position")
        for name, value in values.items():
            if type(value) not in (int, kinds[name]) or not 0 <= value < math.inf:
                raise ValueError(f"{name} has an invalid value")
        return cls(**values)


@dataclasses.dataclass(frozen=True)
class Logged:
    """Values of a run's log up to a position; missing values are None.

    Attributes:
        train_loss: Loss of the last finished epoch.
        psnr: PSNR of the last preview, dB.
        images_per_second: Median throughput of the last epochs, or of the last steps before the first epoch is done.
        changes: Entries about settings that were changed on resuming.
        best: Held-out accuracy and negative held-out loss of the best epoch.
        probed: The newest probe values by name, and their durations in seconds.
    """

    train_loss: float | None
    psnr: float | None
    images_per_second: float | None
    changes: tuple[dict[str, Any], ...]
    best: tuple[float, float] | None = None
    probed: dict[str, float] = dataclasses.field(default_factory=dict)


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: The folder; ``make`` creates it.
        resume: Whether the folder holds the run to resume.
        writes: Whether this process writes files; only one process of a run does.
    """

    def __init__(self, path: Path, *, resume: bool, writes: bool = True) -> None:
        self.path = path
        self.resume = resume
        self.writes = writes
        self._reported: set[str] = set()
        self._unlock: Callable[[], None] | None = None
        self._made: list[Path] = []
        self._closing: list[Callable[[], None]] = []

    def make(self) -> None:
        """Create the folder if it does not exist, and lock it.

        Incomplete files that a killed process of this run left are removed.

        Raises:
            ConfigError: The folder cannot be created, or another process is writing to it.
        """
        if not self.writes:
            return
        folders = [one for one in (self.path, *self.path.parents) if not one.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            # Only after taking the lock: otherwise files that another run is writing would be counted as this run's.
            files = [path for name in _OF_A_START if not (path := self.path / name).exists()]
            self._made = [*files, *([self.path / ".lock", self.path / _HOLDER, *folders] if folders else [])]
            (self.path / "previews").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.path}: {error.strerror}") from None
        for left in (*self.path.glob(".*.tmp"), *(self.path / "previews").glob(".*.tmp")):
            _remove(left)

    def _take_lock(self) -> None:
        """Lock the folder until ``release`` or the end of the process."""
        holder = self.path / _HOLDER
        try:
            unlock = take_lock(self.path / ".lock", wait=False)
        except TimeoutError:
            named = ""
            with contextlib.suppress(OSError):
                named = shown(holder.read_text(encoding="utf-8", errors="replace").strip(), 200)
            raise ConfigError(
                f"another run is writing into {self.path} ({named or 'unknown'})",
                hint="wait for it, or choose another --out",
            ) from None
        self._unlock = unlock
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    def when_released(self, close: Callable[[], None]) -> None:
        """Register a function to call when the run ends, also after an error."""
        self._closing.append(close)

    def release(self) -> None:
        """Call the registered functions and release the lock."""
        self._close()
        if self._unlock is not None:
            _remove(self.path / _HOLDER)
            self._unlock()
            self._unlock = None

    def _close(self) -> None:
        while self._closing:
            self._closing.pop()()

    def abandon(self) -> None:
        """Remove the files of a failed start.

        A folder that existed before, or that holds other files, is kept.
        """
        if self.states():
            return
        self._close()  # trackers still write to the folder
        made, self._made = self._made, []
        for path in made:
            with contextlib.suppress(OSError):
                if path.parent == self.path:
                    _remove(path)
                else:
                    path.rmdir()

    @property
    def checkpoint(self) -> Path:
        """Path of the newest state of a run whose model is not sharded."""
        return self.path / (STATE + WHOLE)

    def states(self) -> list[Path]:
        """Paths of the states that the run can resume from, newest first."""
        return run_states(self.path)

    def place(self, written: Path, kind: str, keep_last: int) -> Path:
        """Make a completely written state the newest one, and keep the previous ones.

        If the process is killed at any point, there is still a state to resume from.

        Args:
            written: A file or folder in the run's folder under another name.
            kind: ``WHOLE`` or ``SHARDS``.
            keep_last: Number of states to keep, the new one included.
        """
        if kind == SHARDS:
            keep_last = max(keep_last, 2)  # a folder cannot be replaced atomically, so the previous state must stay
        for number in range(keep_last - 1, 0, -1):
            before = state_slot(self.path, number - 1)
            if before is None:
                continue
            after = self.path / f"{STATE}-{number}{before.suffix}"
            if (old := state_slot(self.path, number)) is not None:
                _remove(old)
            if number == 1 and before.is_file() and kind == WHOLE:
                link_or_copy(before, after)  # a link, so that the newest state exists at every moment
            else:
                before.replace(after)
        newest = state_slot(self.path, 0)
        if newest is not None and (newest.suffix != kind or newest.is_dir()):
            _remove(newest)
        placed = written.replace(self.path / (STATE + kind))
        while (spare := state_slot(self.path, keep_last)) is not None:
            _remove(spare)
            keep_last += 1
        return placed

    def set_aside_newer(self, state: Path) -> None:
        """Rename the states newer than ``state``, which are unreadable, so that they do not displace readable ones."""
        if not self.writes:
            return
        for path in self.states():
            if path == state:
                return
            aside = path.with_name(path.name + ".broken")
            _remove(aside)
            path.replace(aside)

    def kept_checkpoint(self, epoch: int) -> Path:
        """Path of the checkpoint of an epoch, named as in the official trainer."""
        return self.path / f"checkpoint-{epoch}.pth"

    def finished_file(self, state: Path, position: Position) -> Path:
        """The official checkpoint file of the run at a position, given its newest state, which may be sharded."""
        return self.kept_checkpoint(position.epoch - 1) if state.suffix == SHARDS else state

    def preview(self, epoch: int) -> Path:
        """Path of the preview after ``epoch`` epochs."""
        return self.path / "previews" / f"epoch-{epoch:04d}.png"

    def replay(self, rank: int, ranks: int) -> Path:
        """The replay file of a non-finite step; with several processes, the one of ``rank``."""
        return self.path / ("replay.pth" if ranks == 1 else f"replay-{rank}.pth")

    def read_config(self, config_class: type[Config]) -> Config | None:
        """The settings of the run in this folder; None if it has none.

        Args:
            config_class: Config class of the task.

        Raises:
            ConfigError: ``config.toml`` cannot be read.
        """
        path = self.path / CONFIG_FILE
        if not path.exists() and not self.path.is_file():
            return None
        settings = read_run_settings(self.path, config_class.command)
        # As a resumed run: options that are refused for a new one only may be in it.
        sources = dict.fromkeys(settings, str(path))
        return build_config(config_class, {**settings, "resume": self.path}, source=sources)

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write all settings, plain values by name, as a TOML file that repeats the run when given to ``--config``."""
        if not self.writes:
            return
        values = {name: value for name, value in settings.items() if value is not None}
        try:
            encoded = tomli_w.dumps(values).encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "the name of a path is not valid UTF-8, so config.toml cannot hold it",
                hint="make a symbolic link with an ASCII name to it, and give that",
            ) from None
        write_in_run(self.path / CONFIG_FILE, lambda file: file.write(encoded))

    def write_environment(self) -> None:
        """Write the hardware and the versions of packages to ``environment.json``."""
        if self.writes:
            text = json.dumps(environment(), indent=2) + "\n"
            write_in_run(self.path / ENVIRONMENT_FILE, lambda file: file.write(text.encode()))

    def start_log(self, position: Position) -> None:
        """Remove the log lines of steps after ``position``, from which the run resumes."""
        log = self.path / LOG_FILE
        if not self.writes or not log.exists():
            return
        kept = "".join(line + "\n" for line, _ in self._logged(position)).encode()
        write_in_run(log, lambda file: file.write(kept))

    def read_log(self, position: Position) -> Logged:
        """Values of the log up to a position."""
        known: dict[str, float] = {}
        paces: dict[bool, list[float]] = {True: [], False: []}
        changes = []
        best: tuple[float, float] | None = None
        for _, entry in self._logged(position):
            known |= {name: entry[name] for name in ("train_loss", "psnr", *_PROBED) if _is_number(entry.get(name))}
            if _is_number(pace := entry.get("images_per_second")) and pace > 0:
                of_epochs = paces["train_loss" in entry]
                of_epochs.append(pace)
                del of_epochs[:-_PACE_OF]
            if "changed" in entry:
                changes.append(entry)
                best = None if "classifier" in entry["changed"] else best  # its weights were removed
            accuracy, loss = entry.get("val_accuracy"), entry.get("val_loss")
            if entry.get("best") is True and _is_number(accuracy) and _is_number(loss):
                best = (accuracy, -loss)
        newest = paces[True] or paces[False]
        return Logged(
            known.get("train_loss"),
            known.get("psnr"),
            statistics.median(newest) if newest else None,
            tuple(changes),
            best,
            {name: known[name] for name in _PROBED if name in known},
        )

    def _logged(self, position: Position) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines of the log up to a position, as text and parsed."""
        try:
            text = (self.path / LOG_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that was cut off when the run was killed
                continue
            if not isinstance(entry, dict):
                continue
            name, end = ("epoch", position.epoch - 1) if "train_loss" in entry else ("step", position.step)
            if not _is_number(at := entry.get(name, 0)) or at <= end:
                yield line, entry

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to ``log.jsonl``; non-finite numbers become null, as JSON has none."""
        if not self.writes:
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        try:
            with (self.path / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path / LOG_FILE}: {error.strerror}") from None

    def start_unreadable(self, files: Sequence[Unreadable]) -> None:
        """Start ``unreadable.tsv``, the list of unreadable images with reasons; a resumed run keeps its lines."""
        if not self.writes:
            return
        path = self.path / UNREADABLE_FILE
        lines = _whole_lines(path)[1:] if self.resume else []
        self._reported = {line.partition("\t")[0] for line in lines}
        lines += self._unreported(files)
        if lines:
            write_in_run(path, lambda file: file.write("".join([_UNREADABLE_HEAD, *lines]).encode()))
        else:
            with contextlib.suppress(OSError):
                path.unlink()

    def report_unreadable(self, files: Sequence[Unreadable]) -> None:
        """Add unreadable images to ``unreadable.tsv``.

        Lines are appended without flushing to disk: with a hundred thousand unreadable images, rewriting the file for
        each would take days.
        """
        if not self.writes or not (lines := self._unreported(files)):
            return
        path = self.path / UNREADABLE_FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(lines if file.tell() else [_UNREADABLE_HEAD, *lines]))
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror}") from None

    def _unreported(self, files: Sequence[Unreadable]) -> list[str]:
        """The lines of ``unreadable.tsv`` for the files that are not in it yet."""
        lines = []
        for bad in files:
            if (name := shown(bad.path)) not in self._reported:
                self._reported.add(name)
                lines.append(f"{name}\t{bad.reason}\n")
        return lines


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of a text file; an empty list if it does not exist."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError:
        return []
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]


def open_run(config: Config, *, writes: bool) -> tuple[RunFolder, Config | None]:
    """The folder of a new or resumed run, and the settings that a resumed one has recorded; None if there are none.

    Raises:
        ConfigError: The folder cannot be used: a new run would overwrite another run or its own images.
    """
    path = config.resume or config.out
    refuse_place(path, "--out", folder=True)
    states = run_states(path)
    resume = config.resume is not None or (config.auto_resume and bool(states))
    folder = RunFolder(path, resume=resume, writes=writes)
    if resume:
        return folder, folder.read_config(type(config))
    if states:
        raise ConfigError(
            f"{path} already holds a run",
            hint=f"resume it with --resume {typed(path)} (or --auto-resume), or start another with --out FOLDER",
        )
    _refuse_foreign(path)
    refuse_inside(path, "--out", [one for one in config.images_read() if url_of(one) is None])
    return folder, None


def _refuse_foreign(path: Path) -> None:
    """Refuse to overwrite a finished run's result or files that no run wrote; a killed run's settings may stay."""
    names = (CONFIG_FILE, ENVIRONMENT_FILE, LOG_FILE, CLASSIFIER, RESULT_FILE, "replay.pth")
    there = [name for name in names if (path / name).exists()]
    of_a_run = is_run_config(path / CONFIG_FILE)
    if RESULT_FILE in there and of_a_run:
        raise ConfigError(
            f"{shown(path)} holds the result of a run whose checkpoints were removed; it would be overwritten",
            hint="give --out another folder",
        )
    if there and not of_a_run:
        raise ConfigError(
            f"{shown(path / there[0])} was not written by a run and would be overwritten",
            hint="give --out another folder, or move the file away",
        )


def write_in_run(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """``write_atomically``, with its OSError as a ``TrainingError``.

    Raises:
        TrainingError: The file cannot be written, for instance because the disk is full.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from None


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link to a file, or a copy if the file system has no links."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        write_atomically(target, lambda file: _copy(source, file))


def _copy(source: Path, file: IO[bytes]) -> None:
    with source.open("rb") as original:
        shutil.copyfileobj(original, file, 2**24)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
