"""Read a run folder in any state: finished, running, or incomplete.

While a run is training, the last line of its log may be incomplete. The folder may be untrusted, so every value is
checked, and only numbers and plain names are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mae.errors import DataError
from mae.io.text import shown, typed
from mae.models.registry import ENCODER_SIZES
from mae.system.environment import ENVIRONMENT_FILE

LONGEST_LINE = 2**16  # bytes of a log line; usually about 200
MOST_LINES = 2_000_000  # lines of steps, epochs and probes that are kept; they take about 500 MB of memory
LONGEST_FILE = 2**22  # bytes of another text file in the folder
_LARGEST = 1e30  # largest value; larger ones would overflow the scale of a chart
_LONGEST_VALUE = 40  # characters of the value of a changed setting
_FILES = {"log.jsonl", "config.toml"}  # of which every run has at least one
_SETTING = re.compile(r"[a-z_]{1,40}")
_PREVIEW = re.compile(r"epoch-(\d{1,9})\.png")


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedStep:
    """The log line of a step; ``epoch`` is the number of epochs since the run's start, with a fraction."""

    step: int
    epoch: float
    loss: float
    lr: float
    images_per_second: float
    data_wait: float


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedEpoch:
    """The log line of an epoch; ``epoch`` is the number of finished epochs."""

    epoch: int
    loss: float
    lr: float
    seconds: float
    images_per_second: float
    data_wait: float


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedValidation:
    """Validation at the end of an epoch; ``epoch`` is the number of finished epochs."""

    epoch: int
    loss: float
    accuracy: float


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedTest:
    """Test accuracy with its 95 % interval; ``epoch`` is the epoch of the tested weights, from 1."""

    epoch: int
    accuracy: float
    low: float
    high: float
    images: float


@dataclasses.dataclass(frozen=True, slots=True)
class LoggedProbe:
    """The log line of a probe; NaN for values that were not measured.

    ``epoch`` is the number of epochs since the run's start, with a fraction; accuracies are from 0 to 1.
    """

    epoch: float
    val_loss: float
    knn: float
    linear: float
    rank_me: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Preview:
    """A preview after ``epoch`` epochs, and its PSNR in dB; NaN if the log does not have it."""

    path: Path
    epoch: int
    psnr: float


@dataclasses.dataclass(frozen=True)
class LoggedChange:
    """Settings changed on resuming, as text; ``epoch`` is the number of epochs since the start, with a fraction."""

    epoch: float
    what: str


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The data of a run folder.

    Attributes:
        steps, epochs: Log lines in order, one per step or epoch; non-finite values are NaN.
        previews: Existing previews, in order.
        probes: Measurements during training, in order.
        config: Settings of ``config.toml``; empty if it cannot be read.
        environment: Content of ``environment.json``; empty if it cannot be read.
        unreadable: (name, reason) of unreadable images.
        left_out: Number of steps skipped because of a non-finite loss or gradient.
        rollbacks: Number of rollbacks to a saved state.
        changes: Changes on resuming of settings that affect the losses.
        other_lines: Number of log lines of unknown kind.
        broken_lines: Number of log lines that are not a JSON object, for instance a line that is being written.
        notes: Messages about files that could not be read.
        validations: Validations of a fine-tuning or linear probing run, in order, one per epoch.
        test: Test result of a finished fine-tuning or linear probing run; else None.
        model: Encoder sizes by name of a fine-tuning or linear probing run, NaN if not a number; else empty.
        last_step: Number of the last step that any line names; not every step has a line.
    """

    steps: tuple[LoggedStep, ...]
    epochs: tuple[LoggedEpoch, ...]
    previews: tuple[Preview, ...]
    probes: tuple[LoggedProbe, ...]
    config: dict[str, Any]
    environment: dict[str, Any]
    unreadable: tuple[tuple[str, str], ...]
    left_out: int
    rollbacks: int
    changes: tuple[LoggedChange, ...]
    other_lines: int
    broken_lines: int
    notes: tuple[str, ...]
    validations: tuple[LoggedValidation, ...] = ()
    test: LoggedTest | None = None
    model: dict[str, float] = dataclasses.field(default_factory=dict)
    last_step: int = 0

    @property
    def command(self) -> str:
        """The command that started the run, inferred from its settings."""
        telling = {"layer_decay": "finetune", "trust_coefficient": "linprobe"}
        return next((command for name, command in telling.items() if name in self.config), "pretrain")

    @property
    def wanted_epochs(self) -> int | None:
        """Epochs of the whole run, if its config has them."""
        epochs = self.config.get("epochs")
        return epochs if type(epochs) is int and epochs > 0 else None

    @property
    def finished(self) -> bool:
        """Whether the last epoch is finished and, in a fine-tuning or linear probing run, tested."""
        if self.wanted_epochs is None or not self.epochs or self.epochs[-1].epoch < self.wanted_epochs:
            return False
        return self.command == "pretrain" or self.test is not None

    @property
    def epochs_done(self) -> float:
        """Number of epochs done; with a fraction if steps are logged."""
        return max(self.epochs[-1].epoch if self.epochs else 0.0, self.steps[-1].epoch if self.steps else 0.0)

    @property
    def psnr_uses_original(self) -> bool:
        """Whether masked patches were drawn with the original's mean and std, which raises the previews' PSNR."""
        return self.config.get("norm_pix_loss") is True

    def newest(self, name: str) -> float:
        """The newest value of a probe by name, such as ``val_loss``; NaN if there is none."""
        known = (value for one in reversed(self.probes) if math.isfinite(value := getattr(one, name)))
        return next(known, math.nan)

    def seconds_left(self) -> float | None:
        """Remaining time, estimated from the last epochs; None if unknown."""
        paces = sorted(one.seconds for one in self.epochs[-9:] if math.isfinite(one.seconds))
        if self.wanted_epochs is None or not paces:
            return None
        return max(0.0, self.wanted_epochs - self.epochs_done) * paces[len(paces) // 2]


def read_run(run: Path) -> RunLog:
    """Read a run folder.

    Raises:
        DataError: The folder does not exist, cannot be read or is not a run folder.
    """
    hint = "give a run folder, as in `pretrain --out`"
    if run.is_file():
        beside = any((run.parent / name).is_file() for name in _FILES)
        raise DataError(
            f"{shown(run)} is a file; wanted the folder of a run",
            hint=f"it lies in the folder of a run: {typed(run.parent)}" if beside else hint,
        )
    if not run.is_dir():
        raise DataError(f"{shown(run)}: no such folder", hint=hint)
    try:
        names = {path.name for path in run.iterdir()}
    except OSError as error:
        raise DataError(f"{shown(run)}: {error.strerror}") from None
    if not names & _FILES:
        holds_runs = any(run.glob("*/log.jsonl"))
        raise DataError(
            f"{shown(run)} is not a run folder: it has neither log.jsonl nor config.toml",
            hint=f"`maecli runs {typed(run)}` lists the runs in it" if holds_runs else hint,
        )
    notes: list[str] = []
    books = _LogState()
    for entry in _log_entries(run / "log.jsonl", books, notes):
        books.add(entry)
        if len(books.steps) + len(books.epochs) + len(books.probes) >= MOST_LINES:
            notes.append(f"log.jsonl has more than {MOST_LINES:,} lines; further lines are ignored")
            break
    return RunLog(
        steps=tuple(books.steps[step] for step in sorted(books.steps)),
        epochs=tuple(books.epochs[epoch] for epoch in sorted(books.epochs)),
        previews=_previews(run / "previews", books.psnr),
        probes=tuple(books.probes[epoch] for epoch in sorted(books.probes)),
        config=_read(run / "config.toml", tomllib.loads, notes),
        environment=_read(run / ENVIRONMENT_FILE, json.loads, notes) if ENVIRONMENT_FILE in names else {},
        unreadable=_unreadable(run / "unreadable.tsv", notes) if "unreadable.tsv" in names else (),
        left_out=books.left_out,
        rollbacks=books.rollbacks,
        changes=tuple(books.changes),
        other_lines=books.other,
        broken_lines=books.broken,
        notes=tuple(notes),
        validations=tuple(books.validations[epoch] for epoch in sorted(books.validations)),
        test=books.test,
        model=books.model,
        last_step=books.last_step,
    )


class _LogState:
    """The lines of a log by kind; a later line replaces an earlier one of the same step or epoch."""

    def __init__(self) -> None:
        self.steps: dict[int, LoggedStep] = {}
        self.epochs: dict[int, LoggedEpoch] = {}
        self.psnr: dict[int, float] = {}
        self.validations: dict[int, LoggedValidation] = {}
        self.test: LoggedTest | None = None
        self.probes: dict[float, LoggedProbe] = {}
        self.left_out = 0
        self.rollbacks = 0
        self.changes: list[LoggedChange] = []
        self.model: dict[str, float] = {}
        self.last_step = 0
        self.other = 0
        self.broken = 0

    def add(self, entry: dict[str, Any]) -> None:
        epoch, step = _number(entry.get("epoch")), _number(entry.get("step"))
        rates = (_number(entry.get("images_per_second")), _number(entry.get("data_wait")))
        if 0 <= step < 1e15:
            self.last_step = max(self.last_step, int(step))
        if "train_loss" in entry and 0 <= epoch < 1e9:
            done = int(epoch) + 1
            loss, lr = _number(entry["train_loss"]), _number(entry.get("train_lr"))
            self.epochs[done] = LoggedEpoch(done, loss, lr, _number(entry.get("seconds")), *rates)
            self.test = None  # if there is one, it was made before the run was prolonged
        elif "val_accuracy" in entry and 0 <= epoch < 1e9:
            done = int(epoch) + 1
            self.validations[done] = LoggedValidation(
                done, _number(entry.get("val_loss")), _number(entry["val_accuracy"])
            )
        elif "test_accuracy" in entry and 0 <= epoch < 1e9:
            names = ("test_accuracy", "test_low", "test_high", "test_images")
            self.test = LoggedTest(int(epoch) + 1, *(_number(entry.get(name)) for name in names))
        elif isinstance(model := entry.get("model"), dict):
            self.model = {name: _number(model.get(name)) for name in ENCODER_SIZES}
        elif "left_out" in entry:
            self.left_out += 1
        elif "rolled_back_to" in entry:
            self.rollbacks += 1
        elif "changed" in entry and 0 <= epoch < 1e9:
            if what := _changes_in_words(entry["changed"]):
                self.changes.append(LoggedChange(epoch, what))
        elif "epochs" in entry and ("val_loss" in entry or "knn" in entry):
            self._add_probe(entry)
        elif "preview" in entry:
            name = _PREVIEW.fullmatch(str(entry["preview"])[:99])
            if name:
                self.psnr[int(name[1])] = _number(entry.get("psnr"))
        elif "loss" in entry and 0 <= epoch < 1e9 and 0 <= step < 1e15:
            loss, lr = _number(entry["loss"]), _number(entry.get("lr"))
            self.steps[int(step)] = LoggedStep(int(step), epoch, loss, lr, *rates)
        else:
            self.other += 1

    def _add_probe(self, entry: dict[str, Any]) -> None:
        epoch = _number(entry["epochs"])
        if not 0 <= epoch < 1e9:
            self.other += 1
            return
        values = {name: _number(entry.get(name)) for name in ("val_loss", "knn", "linear", "rank_me")}
        took = [_number(entry.get(name, 0.0)) for name in ("val_seconds", "probe_seconds")]
        self.probes[epoch] = LoggedProbe(epoch, **values, seconds=sum(took))


def _changes_in_words(changed: Any) -> str:
    """Changed settings as text, with old and new values; entries that a run would not write are left out."""
    pairs = changed.items() if isinstance(changed, dict) else ()
    return ", ".join(
        f"{name.replace('_', '-')} {str(pair[0])[:_LONGEST_VALUE]} -> {str(pair[1])[:_LONGEST_VALUE]}"
        for name, pair in list(pairs)[:9]
        if _SETTING.fullmatch(name) and isinstance(pair, list) and len(pair) == 2
    )


def _log_entries(path: Path, books: _LogState, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of the log, line by line; other lines are counted as broken."""
    if not path.exists():
        notes.append("there is no log.jsonl yet")
        return
    if not path.is_file():  # reading a pipe might never end
        notes.append("log.jsonl is not a regular file")
        return
    try:
        with path.open("rb") as file:
            for line in _lines(file):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = None
                if isinstance(entry, dict):
                    yield entry
                else:
                    books.broken += 1
    except OSError as error:
        notes.append(f"log.jsonl cannot be read: {error.strerror}")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of bounded length; a longer line is cut, so it is not valid JSON."""
    while line := file.readline(LONGEST_LINE):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)


def _previews(folder: Path, psnr: dict[int, float]) -> tuple[Preview, ...]:
    """The previews in the folder; file names in the log are not used, because they could point anywhere."""
    try:
        found = [(path, _PREVIEW.fullmatch(path.name)) for path in folder.iterdir() if path.is_file()]
    except OSError:
        return ()
    previews = [Preview(path, int(name[1]), psnr.get(int(name[1]), math.nan)) for path, name in found if name]
    return tuple(sorted(previews, key=lambda preview: preview.epoch))


def _read(path: Path, parse: Any, notes: list[str]) -> dict[str, Any]:
    """The table in a small file; if it cannot be read, an empty one, and a note is added."""
    try:
        values = parse(_text(path))
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: {str(error)[:200]}")
    else:
        if isinstance(values, dict):
            return values
        notes.append(f"{path.name} is not a table")
    return {}


def _unreadable(path: Path, notes: list[str]) -> tuple[tuple[str, str], ...]:
    try:
        lines = _text(path).splitlines()[1:]
    except (OSError, ValueError) as error:
        notes.append(f"unreadable.tsv cannot be read: {error}")
        return ()
    return tuple((name, reason) for name, _, reason in (line.partition("\t") for line in lines if line))


def _text(path: Path) -> str:
    """The content of a small file."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(LONGEST_FILE + 1)
    if len(content) > LONGEST_FILE:
        raise ValueError(f"it is larger than {LONGEST_FILE >> 20} MiB")
    return content.decode()


def _number(value: Any) -> float:
    """A logged number; NaN for any other value."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST:
        return math.nan
    return float(value) if abs(value) > 1 / _LARGEST else 0.0
