"""A run's folder: its config, its log, its checkpoints and pictures, and where it stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import tomli_w

from mae.data.scan import Unreadable
from mae.errors import ConfigError, TrainingError
from mae.files import shown, write_atomically
from mae.training.config import PretrainConfig

CHECKPOINT_LAST = "checkpoint-last.pth"


@dataclasses.dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        epoch: The epoch that is under way, from 0.
        batch: Batches of it that are done, always a whole number of optimiser steps.
        step: Optimiser steps of the whole run that are done.
        loss_sum, lr_sum: Sums over the epoch's batches, so that a resumed epoch reports the same mean.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    lr_sum: float = 0.0


class RunFolder:
    """Where a run writes.

    Args:
        path: The folder; ``make`` makes it.
        resume: Whether a run is to be there already; without it there must be none.

    Raises:
        ConfigError: A run is there and is not resumed.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if not resume and self.checkpoint.exists():
            raise ConfigError(
                f"{path} already holds a run", hint=f"--resume {path} goes on with it; --out starts one elsewhere"
            )

    def make(self) -> None:
        """Make the folder where it is missing; a run that finds no pictures makes none.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "previews").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.path}: {error.strerror}") from None

    @property
    def checkpoint(self) -> Path:
        """The newest state of the run."""
        return self.path / CHECKPOINT_LAST

    def kept_checkpoint(self, epoch: int) -> Path:
        """A checkpoint that stays, under the official trainer's name."""
        return self.path / f"checkpoint-{epoch}.pth"

    def preview(self, epoch: int) -> Path:
        """The picture after ``epoch`` epochs."""
        return self.path / "previews" / f"epoch-{epoch:04d}.png"

    def write_config(self, config: PretrainConfig) -> None:
        """Write a TOML file that repeats the run when it is given to ``--config``."""
        values = {name: _toml(value) for name, value in dataclasses.asdict(config).items() if name != "resume"}
        text = tomli_w.dumps({name: value for name, value in values.items() if value is not None})
        try:
            encoded = text.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                "a path holds bytes that are no UTF-8, so config.toml cannot repeat it",
                hint="give a link with a plain name that leads there",
            ) from None
        write_in_run(self.path / "config.toml", lambda file: file.write(encoded))

    def start_log(self, position: Position) -> None:
        """Drop what a run that was killed had logged past the state that it goes on from."""
        log = self.path / "log.jsonl"
        if not log.exists():
            return
        kept = []
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue
            if ("train_loss" in entry and entry["epoch"] < position.epoch) or entry.get("step", 0) <= position.step:
                kept.append(line + "\n")
        write_in_run(log, lambda file: file.write("".join(kept).encode()))

    def log(self, entry: dict[str, Any]) -> None:
        """Append one object to ``log.jsonl``."""
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path / 'log.jsonl'}: {error.strerror}") from None

    def report_unreadable(self, files: list[Unreadable]) -> None:
        """Write the names of the pictures that were passed over, with the reasons."""
        lines = ["file\treason\n", *(f"{shown(bad.path)}\t{bad.reason}\n" for bad in files)]
        write_in_run(self.path / "unreadable.tsv", lambda file: file.write("".join(lines).encode()))


def write_in_run(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """``write_atomically``, with an error for whoever started the run.

    Raises:
        TrainingError: The file cannot be written, for instance since the disk is full.
    """
    try:
        write_atomically(path, write)
    except OSError as error:
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from None


def _toml(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, tuple):
        return [_toml(item) for item in value]
    return value
