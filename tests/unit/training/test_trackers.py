"""Trackers: the real libraries receive all values; one that fails or hangs neither stops nor delays a run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

import mae.training.trackers
from mae.errors import ConfigError
from mae.options import build_config
from mae.training.config import PretrainConfig
from mae.training.events import (
    EpochDone,
    Evaluating,
    Event,
    Previewed,
    Stepped,
    StepSkipped,
    TrackerFailed,
    Validated,
)
from mae.training.trackers import Trackers, figures
from tests.processes import environment, finish, start_python


def events_of(folder: Path, first: int = 1) -> list[Event]:
    """The events of two steps, an epoch and its preview."""
    preview = folder / "epoch-0001.png"
    Image.new("RGB", (8, 6), (255, 0, 0)).save(preview)
    steps = [Stepped(step / 2, step, 1.0 / step, 2.0, 1e-3, 100.0, 0.25) for step in (first, first + 1)]
    return [*steps, EpochDone(0, 0.75, 1e-3, 3.0, 99.0, 0.2), Previewed(preview, 11.5, True)]


def track(name: str, folder: Path, *, step: int = 0) -> list[Event]:
    """The events that the next listener gets."""
    seen: list[Event] = []
    settings = {"epochs": 3, "data": ["photos"]}
    trackers = Trackers((name,), folder, settings, step, offline=True, on_event=seen.append)
    for event in events_of(folder, step + 1):
        trackers(event)
    trackers.close()
    return seen


def no_failure(seen: list[Event]) -> bool:
    return [type(event) for event in seen] == [Stepped, Stepped, EpochDone, Previewed]


def test_figures_are_all_finite_numbers_but_places() -> None:
    assert figures(Stepped(0.5, 7, 0.3, 2.0, 1e-3, 100.0, 0.25)) == {
        "loss": 0.3, "grad_norm": 2.0, "lr": 1e-3, "images_per_second": 100.0, "data_wait": 0.25,
    }  # fmt: skip
    assert figures(StepSkipped(0.5, 7, float("nan"), 2.0, 1e-3, 3)) == {"grad_norm": 2.0, "lr": 1e-3}
    assert figures(Previewed(Path("x.png"), 11.5, True)) == {"psnr": 11.5}
    assert figures(EpochDone(0, 0.7, 1e-3, 3.0, 99.0, 0.2)).keys() == {
        "train_loss", "train_lr", "seconds", "images_per_second", "data_wait",
    }  # fmt: skip


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert no_failure(track("tensorboard", tmp_path))
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("step/loss")] == [(1, 1.0), (2, 0.5)]
    assert [(event.step, event.value) for event in board.Scalars("epoch/psnr")] == [(2, 11.5)]
    (image,) = board.Images("previews")
    assert (image.step, image.width, image.height) == (2, 8, 6)


def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    assert no_failure(track("wandb", tmp_path))
    (kept,) = (tmp_path / "wandb").glob("offline-run-*")
    missing = {b"step/loss", b"epoch/train_loss", b"epoch/psnr", b"previews", b"photos"}
    end = time.monotonic() + 20
    while missing and time.monotonic() < end:  # W&B's own process may write the last bytes after `finish` returned
        content = b"".join(file.read_bytes() for file in kept.rglob("*") if file.is_file())
        missing = {words for words in missing if words not in content}
        time.sleep(0.05)
    assert not missing
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert no_failure(track("wandb", tmp_path, step=2))  # a resumed run is the same run there
    assert {one.name for one in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")} == {file.name}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_the_command_line_is_not_recorded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    url = "https://user:secret-word@host/train.tar?sig=secret-word"
    monkeypatch.setattr("sys.argv", ["maecli", "pretrain", url])
    assert no_failure(track(name, tmp_path))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 2
    for path in written:
        assert b"secret-word" not in path.read_bytes(), path


def test_mlflow_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    assert no_failure(track("mlflow", tmp_path))
    assert no_failure(track("mlflow", tmp_path, step=2))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("maecli").experiment_id])
    history = client.get_metric_history(run.info.run_id, "step/loss")
    assert sorted((one.step, one.value) for one in history) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert run.data.metrics["epoch/psnr"] == 11.5
    assert run.data.params["epochs"] == "3"
    assert run.info.status == "FINISHED"
    assert [one.path for one in client.list_artifacts(run.info.run_id, "previews")] == ["previews/epoch-0001.png"]


REACHED = """
import os, socket, sys

CONNECT, LOOK_UP = socket.socket.connect, socket.getaddrinfo


def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        print("connect", address, flush=True)
        raise OSError("the test has no network")
    return CONNECT(self, address)


def look_up(host, *arguments, **options):
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        print("look up", host, flush=True)
        raise OSError("the test has no network")
    return LOOK_UP(host, *arguments, **options)


socket.socket.connect, socket.getaddrinfo = connect, look_up
from pathlib import Path

from tests.unit.training.test_trackers import no_failure, track

assert no_failure(track(sys.argv[1], Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_offline_the_libraries_reach_nobody(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, outside of tests and CI, where they report nothing anyway."""
    pytest.importorskip(name)
    for variable in [one for one in os.environ if one == "CI" or one.startswith(("PYTEST_", "GITHUB_", "MLFLOW_"))]:
        monkeypatch.delenv(variable)
    done = finish(start_python("-c", REACHED, name, tmp_path, env=environment()))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


class Recorder:
    entries: ClassVar[list[tuple[int, Mapping[str, float]]]] = []

    def __init__(self, place: Any) -> None:
        self.entries.clear()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.entries.append((step, values))

    def image(self, path: Path, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class Fails:
    def __init__(self, place: Any) -> None:
        pass

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise SystemExit("the server\nis gone")

    def image(self, path: Path, step: int) -> None:
        raise AssertionError("it has failed")

    def close(self) -> None:
        raise AssertionError("it has failed")


class Hangs(Fails):
    def log(self, values: Mapping[str, float], step: int) -> None:
        threading.Event().wait(30)


@pytest.fixture
def with_tracker(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(tracker: Any) -> None:
        monkeypatch.setitem(mae.training.trackers.TRACKERS, "tensorboard", tracker)

    return use


def test_the_values_of_steps_and_of_epochs_have_names_of_their_own(tmp_path: Path, with_tracker: Any) -> None:
    with_tracker(Recorder)
    trackers = Trackers(("tensorboard",), tmp_path, {}, 0, offline=True, on_event=lambda event: None)
    trackers(StepSkipped(0.5, 7, 3.0, float("inf"), 1e-3, 1))
    trackers(Evaluating("test", 64, 128))  # progress, as often as there are batches
    trackers(Validated(0, 0.5, 0.75, True))
    trackers.close()
    assert Recorder.entries == [
        (7, {"step/loss": 3.0, "step/lr": 1e-3}),
        (7, {"epoch/val_loss": 0.5, "epoch/val_accuracy": 0.75}),
    ]


def test_one_that_fails_is_said_once_and_stops_nothing(tmp_path: Path, with_tracker: Any) -> None:
    with_tracker(Fails)
    seen = track("tensorboard", tmp_path)
    assert no_failure([event for event in seen if not isinstance(event, TrackerFailed)])
    assert [event for event in seen if isinstance(event, TrackerFailed)] == [
        TrackerFailed("tensorboard", "SystemExit: the server is gone")
    ]


def test_one_that_hangs_delays_nothing(tmp_path: Path, with_tracker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tracker(Hangs)
    monkeypatch.setattr(mae.training.trackers, "SECONDS_TO_CLOSE", 0.2)
    begun = time.monotonic()
    seen = track("tensorboard", tmp_path)
    assert time.monotonic() - begun < 25
    assert isinstance(seen[-1], TrackerFailed)
    assert "still sending 0.2 seconds after" in seen[-1].reason
    monkeypatch.setattr(mae.training.trackers, "MOST_WAITING", 2)
    assert (
        "entries behind" in next(one for one in track("tensorboard", tmp_path) if isinstance(one, TrackerFailed)).reason
    )


def test_without_its_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--log-to wandb needs the package wandb") as caught:
        Trackers(("wandb",), tmp_path, {}, 0, offline=True, on_event=lambda event: None)
    assert caught.value.hint == "pip install 'maecli[wandb]'"


def test_how_they_are_given() -> None:
    def config(**values: Any) -> PretrainConfig:
        return build_config(PretrainConfig, {"data": ["x"], **values})

    assert config(log_to=["wandb,mlflow"]).trackers() == ("wandb", "mlflow")
    assert config(log_to="wandb mlflow", tensorboard=True).trackers() == ("tensorboard", "wandb", "mlflow")
    assert config(log_to=["tensorboard", "tensorboard"], tensorboard=True).trackers() == ("tensorboard",)
    assert config().trackers() == ()
    with pytest.raises(ConfigError, match="--log-to must be one of tensorboard, wandb, mlflow; got"):
        config(log_to="comet")
