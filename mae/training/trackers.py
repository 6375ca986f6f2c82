"""Logging of a run to TensorBoard, Weights & Biases or MLflow, in addition to ``log.jsonl``.

Each tracker has its own thread and a bounded queue, so a slow or failing tracker neither delays nor ends the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mae.errors import ConfigError
from mae.io.files import write_atomically
from mae.training.events import (
    Evaluating,
    Event,
    ImageUnreadable,
    Previewed,
    Scanned,
    Started,
    Stepped,
    StepSkipped,
    TrackerFailed,
)

PROJECT = "maecli"  # project or experiment name, unless the tracker's environment variables set one
MOST_WAITING = 10_000  # entries in the queue; a tracker that falls further behind gets no more entries
SECONDS_TO_CLOSE = 30.0
# The libraries report their own use to their makers unless these environment variables forbid it.
_NO_REPORTS = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
IDS_FILE = ".trackers.json"  # each tracker's ID of the run, by which a resumed run continues it there
# Fields of an event that give its position in the run; they are not logged as values.
_PLACES = {"epoch", "epochs", "step", "in_a_row", "turn"}


class Tracker(Protocol):
    """Interface of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record finite values by name at a step."""

    def image(self, path: Path, step: int) -> None:
        """Record a preview."""

    def close(self) -> None:
        """Write or send all pending entries."""


class _Place(NamedTuple):
    """The run, as passed to a tracker when it opens."""

    folder: Path
    settings: dict[str, Any]
    step: int
    offline: bool


class Trackers:
    """An event listener that passes events to trackers and then to the next listener.

    Args:
        names: Names in ``TRACKERS``.
        folder: Folder of the run.
        settings: Settings of the run, to record.
        step: Number of finished steps.
        offline: Whether sending is not allowed.
        on_event: The next listener.

    Raises:
        ConfigError: A tracker's package is not installed.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        folder: Path,
        settings: dict[str, Any],
        step: int,
        *,
        offline: bool,
        on_event: Callable[[Event], None],
    ) -> None:
        for name in names:
            _require(name)
        if offline:
            os.environ.update(_NO_REPORTS)  # before the libraries are imported, since they read them then
        self.on_event = on_event
        self.step = step
        place = _Place(folder, settings, step, offline)
        self._threads = [_TrackerThread(name, place) for name in names]

    def __call__(self, event: Event) -> None:
        """Pass an event to the trackers and to the next listener."""
        if not isinstance(event, Scanned | Started | Evaluating | ImageUnreadable):
            self.step = int(getattr(event, "step", self.step))
            prefix = "step" if isinstance(event, Stepped | StepSkipped) else "epoch"
            values, step = {f"{prefix}/{name}": value for name, value in figures(event).items()}, self.step
            path = event.path if isinstance(event, Previewed) else None
            for thread in self._threads:
                if values:
                    thread.put(lambda tracker: tracker.log(values, step))
                if path is not None:
                    thread.put(lambda tracker: tracker.image(path, step))
        self._tell_failures()
        self.on_event(event)

    def close(self) -> None:
        """Wait until all trackers are done, at most 30 seconds."""
        end = time.monotonic() + SECONDS_TO_CLOSE
        for thread in self._threads:
            thread.put(None)
        for thread in self._threads:
            thread.join(end)
        self._tell_failures()
        self._threads = []

    def _tell_failures(self) -> None:
        for thread in self._threads:
            if (failure := thread.new_failure()) is not None:
                self.on_event(TrackerFailed(thread.tracker, failure))


def figures(event: Event) -> dict[str, float]:
    """The finite numbers of an event, by name."""
    values = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
    return {
        name: float(value)
        for name, value in values.items()
        if name not in _PLACES
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class _TrackerThread:
    """Opens a tracker and passes entries to it."""

    def __init__(self, tracker: str, place: _Place) -> None:
        self.tracker = tracker
        self._entries: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._failure: str | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, args=(place,), name=f"tracker {tracker}", daemon=True)
        self._thread.start()

    def put(self, entry: Callable[[Tracker], None] | None) -> None:
        """Enqueue an entry, or None as the end; ignored after a failure."""
        if self._failure is not None:
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._failure = f"it is more than {MOST_WAITING:,} entries behind"

    def join(self, end: float) -> None:
        """Wait until the queue is processed, or until a deadline."""
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive() and self._failure is None:
            self._failure = f"it was still sending {SECONDS_TO_CLOSE:g} seconds after the run's end"

    def new_failure(self) -> str | None:
        """The reason of a failure, returned by the first call after it; else None."""
        if self._failure is None or self._told:
            return None
        self._told = True
        return self._failure

    def _work(self, place: _Place) -> None:
        try:
            tracker: Tracker = TRACKERS[self.tracker](place)
            while self._failure is None and (entry := self._entries.get()) is not None:
                entry(tracker)
            tracker.close()
        except BaseException as error:  # wandb and mlflow may raise any exception, SystemExit included
            self._failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class TensorBoard:
    """Event files in the run's folder; entries after the step that a run resumes from are dropped."""

    def __init__(self, place: _Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(place.folder / "tensorboard"), purge_step=place.step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write the values as scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if any(name.startswith("epoch/") for name in values):
            self._writer.flush()

    def image(self, path: Path, step: int) -> None:
        """Under ``previews``."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image("previews", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Flush the event files."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb, configured by WANDB_PROJECT, WANDB_MODE and its other variables."""

    def __init__(self, place: _Place) -> None:
        import wandb

        known = _ids(place.folder).get("wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=place.folder.resolve().name,
            dir=str(place.folder),
            config=place.settings,
            id=known,
            resume="allow" if known else None,
            mode="offline" if place.offline else None,
            # wandb's metadata hold the command line, and with it the secrets of a URL.
            settings=wandb.Settings(silent=True, console="off", x_disable_meta=True),
        )
        _keep_id(place.folder, "wandb", self._run.id)
        # wandb's own step must not decrease, but a run that is rolled back goes back to an earlier step.
        self._run.define_metric("*", step_metric="steps")
        self._image = wandb.Image

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values with the step."""
        self._run.log({**values, "steps": step})

    def image(self, path: Path, step: int) -> None:
        """Under ``previews``."""
        self._run.log({"previews": self._image(str(path)), "steps": step})

    def close(self) -> None:
        """Upload the pending entries."""
        self._run.finish()


class MLflow:
    """A run of MLflow, configured by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME; by default in the run's folder."""

    def __init__(self, place: _Place) -> None:
        here = (place.folder / "mlflow").resolve()
        if "MLFLOW_TRACKING_URI" not in os.environ or place.offline:
            here.mkdir(exist_ok=True)
            # A store in files needs no database server; MLflow requires this variable to allow it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        server = None if place.offline else os.environ.get("MLFLOW_TRACKING_URI")
        self._client: Any = MlflowClient(tracking_uri=server or here.as_uri())
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        known = _ids(place.folder).get("mlflow")
        self._run = known or self._client.create_run(number, run_name=place.folder.resolve().name).info.run_id
        if known:
            self._client.update_run(known, status="RUNNING")
        else:
            _keep_id(place.folder, "mlflow", self._run)
            for name, value in place.settings.items():
                self._client.log_param(self._run, name, str(value)[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the values as metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def image(self, path: Path, step: int) -> None:
        """Log the preview as an artifact."""
        self._client.log_artifact(self._run, str(path), "previews")

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[_Place], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def _require(name: str) -> None:
    from importlib.util import find_spec

    if find_spec(name) is None:
        raise ConfigError(f"--log-to {name} needs the package {name}", hint=f"pip install 'maecli[{name}]'")


def _ids(folder: Path) -> dict[str, str]:
    try:
        kept = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in kept.items() if isinstance(value, str)} if isinstance(kept, dict) else {}


def _keep_id(folder: Path, name: str, value: str) -> None:
    with _IDS_LOCK, contextlib.suppress(OSError):
        text = json.dumps(_ids(folder) | {name: value})
        write_atomically(folder / IDS_FILE, lambda file: file.write(text.encode()))


_IDS_LOCK = threading.Lock()  # the trackers' threads share the file
logging.getLogger("wandb").addHandler(logging.NullHandler())
