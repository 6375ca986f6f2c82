"""Writes an HTML page about one or several runs."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mae.data.decoding.image import load_image
from mae.errors import ConfigError, DataError
from mae.io.files import refuse_input, refuse_place, write_output
from mae.io.notebook import Drawn, Table
from mae.io.text import short_names, shown
from mae.reconstruction.animation import write_animation
from mae.reporting.config import SUFFIXES, ReportConfig
from mae.reporting.curves import MOST_POINTS, evenly
from mae.reporting.page import PreviewImage, page
from mae.reporting.run_log import Preview, RunLog, read_run
from mae.reporting.runs import RunSummary, finite, last_line, run_state, summary_of
from mae.reporting.side_by_side import ComparedRun, comparison_page, differing_settings

_WIDEST = 1200  # largest width of an image on the page, pixels
_JPEG_QUALITY = 82
_MOST_FRAMES = 100  # of the animation


@dataclasses.dataclass(frozen=True)
class ReportResult(Drawn):
    """The written page and its main numbers; a number that the run does not have yet is None.

    Attributes:
        out: The page.
        size_bytes: Size of the page.
        epochs, wanted_epochs: Number of finished epochs, and of epochs of the whole run.
        finished: Whether the last epoch is finished.
        logged_steps: Number of steps in the log; curves of more than 400 points are thinned.
        thinned_by: Largest number of logged steps per point of a curve.
        first_loss, last_loss: Loss of the first and the last finished epoch.
        psnr: PSNR of the newest preview, dB.
        images_per_second, data_wait: Throughput, and fraction of the time spent waiting for data, in the last epoch.
        first_data_wait: Fraction of the time spent waiting for data in the first epoch.
        images: Number of previews on the page.
        unreadable: Number of unreadable images in the run.
        environment_recorded: Whether the run folder has a record of the hardware and versions.
        animation: The written animation; None if none was requested.
        notes: Messages about files that could not be read.
    """

    out: Path
    size_bytes: int
    epochs: int
    wanted_epochs: int | None
    finished: bool
    logged_steps: int
    thinned_by: int
    first_loss: float | None
    last_loss: float | None
    psnr: float | None
    images_per_second: float | None
    data_wait: float | None
    first_data_wait: float | None
    images: int
    unreadable: int
    environment_recorded: bool
    animation: Path | None
    notes: tuple[str, ...]

    def _table(self) -> Table:
        of = f" of {self.wanted_epochs:,}" if self.wanted_epochs else ""
        return Table(
            "report of a run",
            [
                ("page", self.out),
                ("epochs", f"{self.epochs:,}{of}"),
                ("loss of the first epoch", self.first_loss),
                ("loss of the last epoch", self.last_loss),
                ("PSNR of the newest preview, dB", self.psnr),
                ("images/s", self.images_per_second),
            ],
        )


@dataclasses.dataclass(frozen=True)
class ComparisonResult(Drawn):
    """The written page about several runs, and its main content.

    Attributes:
        out: The page.
        size_bytes: Size of the page.
        runs: Summaries of the runs, in the given order.
        settings: Settings that differ, each with its value in every run; None if a run does not have it.
        images: Number of previews on the page.
        notes: Messages about files that could not be read.
    """

    out: Path
    size_bytes: int
    runs: tuple[RunSummary, ...]
    settings: dict[str, tuple[str | None, ...]]
    images: int
    notes: tuple[str, ...]

    def _table(self) -> Table:
        rows = [(one.run, one.state, one.epochs, one.loss, one.psnr) for one in self.runs]
        return Table(f"report of {len(rows)} runs: {self.out}", rows, ("run", "state", "epochs", "loss", "PSNR, dB"))


def report(config: ReportConfig) -> ReportResult | ComparisonResult:
    """Write a self-contained HTML page about a run in any state, or a comparison of several runs.

    A comparison has charts with one curve per run, the settings that differ, and the last previews.

    Raises:
        DataError: A folder does not exist or is not a run folder.
        ConfigError: The page cannot be written.
    """
    refuse_place(config.out, "--out")
    logs = [read_run(run) for run in config.run]  # first: a folder that is no run may hold millions of files
    for run in config.run:
        kept = [path for path in run.rglob("*") if path.is_file() and path.suffix.lower() not in SUFFIXES]
        refuse_input(config.out, "--out", {"a file of the run": kept})
        if config.animate is not None:
            refuse_place(config.animate, "--animate")
            refuse_input(config.animate, "--animate", {"a file of the run": kept})
    return _report_one(config, config.run[0], logs[0]) if len(config.run) == 1 else _report_many(config, logs)


def _report_one(config: ReportConfig, run: Path, log: RunLog) -> ReportResult:
    notes = list(log.notes)
    images = _images([log.previews[number] for number in evenly(len(log.previews), config.images)], notes)
    name = run.name or run.resolve().name or str(run)
    state = run_state(run, log, time.time())
    document = page(shown(name), log, images, notes, last_line(run), time.time(), state).encode()
    if config.animate is not None:
        notes += [note for note in _animate(config.animate, log) if note not in notes]
    write_output(config.out, document, "--out")
    return _result(config, len(document), log, len(images), notes)


def _report_many(config: ReportConfig, logs: Sequence[RunLog]) -> ComparisonResult:
    now = time.time()
    names = short_names(config.run)
    notes = [f"{name}: {note}" for name, log in zip(names, logs, strict=True) for note in log.notes]
    compared = [
        ComparedRun(
            dataclasses.replace(summary_of(run, log, now), run=name),
            log,
            next(iter(_images(log.previews[-1:] if config.images else (), notes)), None),
        )
        for name, run, log in zip(names, config.run, logs, strict=True)
    ]
    settings = differing_settings([log.config for log in logs])
    document = comparison_page(compared, settings, notes, now).encode()
    write_output(config.out, document, "--out")
    return ComparisonResult(
        out=config.out,
        size_bytes=len(document),
        runs=tuple(one.summary for one in compared),
        settings=settings,
        images=sum(one.preview is not None for one in compared),
        notes=tuple(notes),
    )


def _images(previews: Iterable[Preview], notes: list[str]) -> list[PreviewImage]:
    """Read the previews; for each unreadable one a note is added instead."""
    images = []
    for preview in previews:
        try:
            images.append(_image(preview))
        except DataError as error:
            notes.append(error.message)
    return images


def _image(preview: Preview) -> PreviewImage:
    """Decode an untrusted image and encode it again, so that the page contains only its pixels."""
    image = load_image(preview.path)
    image.thumbnail((_WIDEST, 4 * _WIDEST))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    data_uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return PreviewImage(preview.epoch, preview.psnr, data_uri, image.size)


def _animate(path: Path, log: RunLog) -> list[str]:
    """Write the previews, whose captions name their epochs, as the frames of an animation.

    Returns:
        Messages about previews that could not be read.
    """
    frames, notes = [], []
    for number in evenly(len(log.previews), _MOST_FRAMES):
        try:
            image = load_image(log.previews[number].path)
        except DataError as error:
            notes.append(error.message)
            continue
        image.thumbnail((_WIDEST, 4 * _WIDEST))
        frames.append(image)
    if not frames:
        raise ConfigError("--animate: the run has no readable preview")
    write_animation(path, frames)
    return notes


def _result(config: ReportConfig, size: int, log: RunLog, images: int, notes: list[str]) -> ReportResult:
    first = log.epochs[0] if log.epochs else None
    last = log.epochs[-1] if log.epochs else None
    return ReportResult(
        out=config.out,
        size_bytes=size,
        epochs=last.epoch if last else 0,
        wanted_epochs=log.wanted_epochs,
        finished=log.finished,
        logged_steps=len(log.steps),
        thinned_by=max(1, -(-len(log.steps) // MOST_POINTS)),
        first_loss=finite(first.loss) if first else None,
        last_loss=finite(last.loss) if last else None,
        psnr=finite(log.previews[-1].psnr) if log.previews else None,
        images_per_second=finite(last.images_per_second) if last else None,
        data_wait=finite(last.data_wait) if last else None,
        first_data_wait=finite(first.data_wait) if first else None,
        images=images,
        unreadable=len(log.unreadable),
        environment_recorded=bool(log.environment),
        animation=config.animate,
        notes=tuple(notes),
    )
