"""The log of a run, ``log.jsonl``: one JSON object per line."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from mae.errors import TrainingError
from mae.training.failures import write_in_run
from mae.training.position import Position

LOG_FILE = "log.jsonl"
_PROBED = ("val_loss", "knn", "linear", "rank_me", "val_seconds", "probe_seconds")
_PACE_OF = 9  # newest epochs, or logged steps, whose median throughput is taken


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


class Log:
    """The log of a run.

    Args:
        folder: The run's folder.
        writes: Whether this process writes it; only one process of a run does.
    """

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.path = folder / LOG_FILE
        self.writes = writes

    def add(self, entry: dict[str, Any]) -> None:
        """Append one object; non-finite numbers become null, as JSON has none."""
        if not self.writes:
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in entry.items()
        }
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise TrainingError(f"{self.path}: {error.strerror}") from None

    def cut(self, position: Position) -> None:
        """Remove the lines of steps after ``position``, from which the run resumes."""
        if not self.writes or not self.path.exists():
            return
        kept = "".join(line + "\n" for line, _ in self._entries(position)).encode()
        write_in_run(self.path, lambda file: file.write(kept))

    def read(self, position: Position) -> Logged:
        """Values of the log up to a position."""
        known: dict[str, float] = {}
        paces: dict[bool, list[float]] = {True: [], False: []}
        changes = []
        best: tuple[float, float] | None = None
        for _, entry in self._entries(position):
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

    def _entries(self, position: Position) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines up to a position, as text and parsed."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
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


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
