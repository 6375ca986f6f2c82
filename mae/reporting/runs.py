"""Lists the runs below a folder with progress, loss and state."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae.errors import DataError, MaeError
from mae.io.notebook import Drawn, Table
from mae.io.text import shown
from mae.models.registry import ENCODER_SIZES, VARIANTS
from mae.reporting.config import RunsConfig
from mae.reporting.run_log import RunLog, read_run

MOST_RUNS = 10_000
DEEPEST = 8  # largest depth of folders that are searched
FRESH_SECONDS = 900.0  # a run on another machine counts as training if its log changed within this time
_SIZES = (*ENCODER_SIZES, "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
_HOLDER = re.compile(r"process (\d{1,9}) on (\S{1,255})")


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """Summary of a run; None for unknown values.

    Attributes:
        run: Folder of the run.
        state: "training", "finished", "stopped", or "unknown" for a run on another machine whose log is old.
        model: Name of the variant, with ", changed" if some of its sizes are others.
        epochs, wanted_epochs: Finished epochs, with a fraction, and epochs of the whole run.
        loss: Loss of the last epoch, else of the last logged step.
        psnr: PSNR of the newest preview, dB.
        knn, linear: Accuracy by the newest probe of the encoder, from 0 to 1.
        test: Test accuracy of a classification run.
        images_per_second: Throughput of the last epoch.
        seconds_left: Estimate from the last epochs, for an unfinished run.
        last_line: Time of the last change of its log, seconds since 1970.
        trouble: Why the run cannot be read; empty if it can.
    """

    run: str
    state: str
    model: str | None = None
    epochs: float = 0.0
    wanted_epochs: int | None = None
    loss: float | None = None
    psnr: float | None = None
    knn: float | None = None
    linear: float | None = None
    test: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    last_line: float | None = None
    trouble: str = ""


@dataclasses.dataclass(frozen=True)
class RunsResult(Drawn):
    """All runs below a folder, in the order of ``--sort``."""

    folder: Path
    runs: tuple[RunSummary, ...]

    def _table(self) -> Table:
        shown_accuracies = accuracies(self.runs)
        rows = [
            (
                *(one.run, one.state, one.epochs, one.wanted_epochs, one.loss, one.psnr),
                *(getattr(one, name) for name in shown_accuracies),
            )
            for one in self.runs
        ]
        columns = ("run", "state", "epochs", "of", "loss", "PSNR, dB", *shown_accuracies.values())
        return Table(f"{len(rows)} runs in {self.folder}", rows, columns)


def accuracies(runs: Sequence[RunSummary]) -> dict[str, str]:
    """Field name -> column title of the accuracies that at least one of the runs has."""
    named = {"knn": "k-NN", "linear": "linear", "test": "test"}
    return {name: title for name, title in named.items() if any(getattr(one, name) is not None for one in runs)}


def summary_cells(one: RunSummary, measured: Iterable[str], of: str) -> tuple[str, ...]:
    """Epochs, loss, PSNR, the accuracies of ``measured`` and images/s of a run as text; "-" for what is unknown.

    ``of`` stands between the finished and the wanted epochs.
    """
    epochs = figure_text(one.epochs) + (f"{of}{one.wanted_epochs:,}" if one.wanted_epochs else "")
    forms = {"loss": "{:.4f}", "psnr": "{:.1f} dB", **dict.fromkeys(measured, "{:.1%}"), "images_per_second": "{:,.0f}"}
    values = ((getattr(one, name), form) for name, form in forms.items())
    return (epochs, *("-" if value is None else form.format(value) for value, form in values))


def figure_text(value: float) -> str:
    """A number with four digits, or with all before the point, such as 12,346; a dash for NaN."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:,.4g}"


def runs(config: RunsConfig) -> RunsResult:
    """List the runs below a folder with progress, loss and state. Nothing is written.

    Raises:
        DataError: There is no such folder, or no run in it.
    """
    if not config.folder.is_dir():
        what = " is a file; a folder is wanted" if config.folder.is_file() else ": no such folder"
        raise DataError(f"{shown(config.folder)}{what}", hint="give a folder that contains runs")
    now = time.time()
    found = [_summary(config.folder, path, now) for path in find_runs(config.folder)]
    if not found:
        raise DataError(
            f"{shown(config.folder)} contains no run folder with a log.jsonl",
            hint="`maecli pretrain --out FOLDER` writes a run folder",
        )
    keys = {
        "newest": lambda one: -(one.last_line or 0.0),
        "loss": lambda one: math.inf if one.loss is None else one.loss,
        "name": lambda one: one.run,
    }
    return RunsResult(config.folder, tuple(sorted(found, key=keys[config.sort])))


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs at or below a folder, sorted by name; folders within a run are not searched."""
    count = 0
    for at, folders, files in os.walk(folder):
        depth = len(Path(at).relative_to(folder).parts)
        is_run = "log.jsonl" in files or ("config.toml" in files and "previews" in folders)
        folders[:] = [] if is_run or depth >= DEEPEST else sorted(name for name in folders if not name.startswith("."))
        if is_run:
            yield Path(at)
            count += 1
            if count >= MOST_RUNS:
                return


def run_state(run: Path, log: RunLog, now: float) -> str:
    """Whether a run is finished, training or stopped.

    The folder of a run that is training has a file that names its process. Whether the process exists can be checked
    only on the same machine; for other machines the age of the log is used.
    """
    if log.finished:
        return "finished"
    named = run / ".lock-holder"
    holder = None
    with contextlib.suppress(OSError):
        if named.is_file():  # opening a pipe might never end
            with named.open(encoding="utf-8", errors="replace") as file:
                holder = _HOLDER.match(file.read(400))
    if holder is None:
        return "stopped"
    if holder[2] == socket.gethostname() and os.name == "posix":
        return "training" if _lives(int(holder[1])) else "stopped"
    written = last_line(run)
    return "training" if written is not None and now - written < FRESH_SECONDS else "unknown"


def last_line(run: Path) -> float | None:
    """Time of the last change of a run's log, seconds since 1970; None if there is no log."""
    try:
        return (run / "log.jsonl").stat().st_mtime
    except OSError:
        return None


def last_loss(log: RunLog) -> float | None:
    """Loss of the last finished epoch, else of the last logged step; None if there is neither."""
    losses = [one.loss for one in (log.epochs[-1:] or log.steps[-1:])]
    return next((loss for loss in losses if math.isfinite(loss)), None)


def finite(value: float) -> float | None:
    """The value; None if it is NaN or infinite."""
    return value if math.isfinite(value) else None


def _lives(process: int) -> bool:
    if process < 1:  # a group of processes, which always exists
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user
        return True
    return True


def _model(settings: Mapping[str, Any], logged: Mapping[str, float]) -> str | None:
    """Name of the variant, and whether sizes of its encoder or decoder were changed.

    ``logged`` are the encoder's sizes of a classifier, whose settings have no variant if it began with other weights.
    Without a variant of its width, it is described by width and number of blocks.
    """
    variant = settings.get("variant")
    if not isinstance(variant, str):
        if not logged or not all(map(math.isfinite, logged.values())):
            return None
        settings = logged
        variant = next((name for name, one in VARIANTS.items() if one.embed_dim == logged["embed_dim"]), None)
        if variant is None:
            return f"width {logged['embed_dim']:g}, {logged['depth']:g} blocks"
    sizes = dataclasses.asdict(VARIANTS[variant]) if variant in VARIANTS else {}
    changed = any(settings.get(name, sizes[name]) != sizes[name] for name in _SIZES if name in sizes)
    return f"{variant}, changed" if changed else variant


def _summary(folder: Path, run: Path, now: float) -> RunSummary:
    name = str(run.relative_to(folder)) if run != folder else "."
    try:
        log = read_run(run)
    except MaeError as error:
        return RunSummary(name, "unknown", trouble=error.message)
    return dataclasses.replace(summary_of(run, log, now), run=name)


def summary_of(run: Path, log: RunLog, now: float) -> RunSummary:
    """Summary of a run whose log was read; ``now`` is in seconds since 1970."""
    rates = [one.images_per_second for one in (log.epochs[-1:] or log.steps[-1:])]
    psnr = [one.psnr for one in log.previews if math.isfinite(one.psnr)]
    return RunSummary(
        run=str(run),
        state=run_state(run, log, now),
        model=_model(log.config, log.model),
        epochs=log.epochs_done,
        wanted_epochs=log.wanted_epochs,
        loss=last_loss(log),
        psnr=psnr[-1] if psnr else None,
        knn=finite(log.newest("knn")),
        linear=finite(log.newest("linear")),
        test=finite(log.test.accuracy) if log.test else None,
        images_per_second=next((rate for rate in rates if math.isfinite(rate)), None),
        seconds_left=None if log.finished else log.seconds_left(),
        last_line=last_line(run),
    )
