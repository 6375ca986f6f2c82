"""Probes during training: right, limited in time, checked before the first step, without effect on training."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import mae
from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.data.eval_transform import EvalTransform
from mae.data.sources.scan import scan_images
from mae.data.transforms import normalise
from mae.errors import DataError
from mae.evaluation import linear as linear_module
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.evaluate import evaluate
from mae.evaluation.linear import LinearResult
from mae.models import create_model
from mae.reporting.run_log import read_run
from mae.system.distributed import Ranks
from mae.system.seeding import seeded, stream
from mae.training import probes as probes_module
from mae.training.config import PretrainConfig
from mae.training.engine import plan_task
from mae.training.events import EpochDone, Event, Probed, ProbePlan, Started
from mae.training.log import Logged
from mae.training.pretrain import PRETRAINING, pretrain
from mae.training.previews import held_out_images
from mae.training.probes import MASK_SEED, Probes, find_probe_data
from tests.unit.evaluation.small import class_folders
from tests.unit.training.small import logged, same, stop_after, weights

pytestmark = pytest.mark.usefixtures("small_models")
MEASURED = ("val_loss", "knn", "linear", "rank_me")


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearest class mean instead of a linear probe, which takes a second; the tests check when it is called."""

    def fit(
        train: torch.Tensor, labels: NDArray[np.int64], test: torch.Tensor, classes: int, *, seed: int
    ) -> LinearResult:
        means = torch.stack([train[torch.from_numpy(labels == number)].mean(dim=0) for number in range(classes)])
        return LinearResult(torch.cdist(test, means).argmin(dim=1).numpy(), 1.0, None)

    monkeypatch.setattr(probes_module, "linear", fit)


@pytest.fixture
def measured(config: PretrainConfig, tmp_path: Path, quick_fit: None) -> PretrainConfig:
    """The same run with held-out images and with probes every second epoch."""
    class_folders(tmp_path / "flowers" / "train", 6)
    class_folders(tmp_path / "flowers" / "test", 3, seed=1)
    class_folders(tmp_path / "val", 6, seed=2)
    return dataclasses.replace(
        config,
        val=tmp_path / "val",
        probe=tmp_path / "flowers",
        probe_every=2,
        preview_every=0,
        out=tmp_path / "measured",
    )


def probes_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry for entry in lines if "epochs" in entry]


def untimed(run: Path) -> list[dict[str, Any]]:
    """The log without times."""
    return [
        {name: value for name, value in entry.items() if name not in ("val_seconds", "probe_seconds")}
        for entry in logged(run)
    ]


def test_a_new_run_does_not_take_over_the_log_of_a_killed_one(measured: PretrainConfig) -> None:
    """Where no state was saved, a run begins in the same folder, perhaps with another model."""
    measured.out.mkdir()
    (measured.out / "config.toml").write_text('data = ["/photos"]\nmask_ratio = 0.5\n')
    old = {"epochs": 0.0, "step": 0, "val_loss": 9.0, "val_seconds": 1.0}
    (measured.out / "log.jsonl").write_text(json.dumps(old) + "\n")
    pretrain(dataclasses.replace(measured, epochs=1, probe=None, probe_every=PretrainConfig.probe_every))
    assert [entry["epochs"] for entry in probes_of(measured.out)] == [0, 1]
    assert all(entry["val_loss"] < 9 for entry in probes_of(measured.out))


def test_no_number_of_the_training_changes(config: PretrainConfig, measured: PretrainConfig) -> None:
    pretrain(dataclasses.replace(config, preview_every=0))
    pretrain(measured)
    assert same(weights(config.out), weights(measured.out))
    plain = load_checkpoint(config.out / "checkpoint-last.pth").optimizer
    other = load_checkpoint(measured.out / "checkpoint-last.pth").optimizer
    assert plain is not None
    assert other is not None
    for number, moments in plain["state"].items():
        assert all(torch.equal(moments[name], other["state"][number][name]) for name in ("exp_avg", "exp_avg_sq"))
    assert untimed(config.out) == [entry for entry in untimed(measured.out) if "epochs" not in entry]


def test_what_is_logged_and_when(measured: PretrainConfig) -> None:
    events: list[Event] = []
    result = pretrain(measured, events.append)
    lines = probes_of(measured.out)
    assert [(entry["epochs"], entry["step"]) for entry in lines] == [(0.0, 0), (1, 3), (2, 6), (3, 9)]
    assert [sorted(set(entry) & set(MEASURED)) for entry in lines] == [
        sorted(MEASURED), ["val_loss"], sorted(MEASURED), sorted(MEASURED),
    ]  # fmt: skip
    probed = [event for event in events if isinstance(event, Probed)]
    assert [event.val_loss for event in probed] == [entry["val_loss"] for entry in lines]
    assert (result.val_loss, result.knn, result.linear, result.rank_me) == tuple(lines[-1][name] for name in MEASURED)
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.probes == ProbePlan(
        val_images=16, train_images=18, test_images=9, classes=3, every=2,
        val_seconds=lines[0]["val_seconds"], probe_seconds=lines[0]["probe_seconds"],
    )  # fmt: skip
    assert lines[0]["val_seconds"] > 0
    assert lines[0]["probe_seconds"] > 0
    log = read_run(measured.out)
    assert [one.epoch for one in log.probes] == [0, 1, 2, 3]
    assert log.newest("linear") == result.linear
    assert log.other_lines == 0


def test_tensorboard_has_them(measured: PretrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(dataclasses.replace(measured, tensorboard=True, epochs=2))
    board = EventAccumulator(str(measured.out / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("epoch/val_loss")] == [0, 3, 6]
    for name in ("knn", "linear", "rank_me"):
        values = [(event.step, pytest.approx(event.value)) for event in board.Scalars(f"epoch/{name}")]
        assert values == [(entry["step"], entry[name]) for entry in probes_of(measured.out) if name in entry]


def test_the_cost_is_counted() -> None:
    plan = ProbePlan(16, 18, 9, 3, every=4, val_seconds=0.5, probe_seconds=10)
    assert plan.seconds(0, 10) == 10 * 0.5 + 3 * 10  # after 4, 8 and the last
    assert plan.seconds(8, 10) == 2 * 0.5 + 10
    assert ProbePlan(16, 0, 0, 0, 4, 0.5, 0.0).seconds(0, 10) == 5


def test_measuring_is_no_training_time(measured: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which each measurement takes a thousand seconds."""
    monotonic, measure = time.monotonic, Probes.measure
    ahead = 0.0

    def slow(self: Probes, epochs: int, step: int) -> Probed | None:
        nonlocal ahead
        ahead += 1000
        return measure(self, epochs, step)

    monkeypatch.setattr(Probes, "measure", slow)
    monkeypatch.setattr("mae.training.clock.time.monotonic", lambda: monotonic() + ahead)
    events: list[Event] = []
    pretrain(dataclasses.replace(measured, probe=None, probe_every=20), events.append)
    assert ahead == 3000
    assert max(event.seconds for event in events if isinstance(event, EpochDone)) < 500


@pytest.mark.parametrize("steps", [3, 4])
def test_resumed_equals_uninterrupted(measured: PretrainConfig, tmp_path: Path, steps: int) -> None:
    pretrain(measured)
    parted = dataclasses.replace(measured, out=tmp_path / "parted")
    pretrain(parted, *stop_after(steps))
    events: list[Event] = []
    pretrain(dataclasses.replace(parted, resume=parted.out), events.append)
    assert untimed(measured.out) == untimed(parted.out)
    assert same(weights(measured.out), weights(parted.out))
    (started,) = (event for event in events if isinstance(event, Started))
    assert started.probed is None  # the log contains the cost
    assert started.probes is not None
    assert started.probes.probe_seconds == probes_of(parted.out)[0]["probe_seconds"]


def test_a_run_that_goes_on_may_begin_to_measure(config: PretrainConfig, measured: PretrainConfig) -> None:
    pretrain(config, *stop_after(4))
    pretrain(dataclasses.replace(measured, out=config.out, resume=config.out))
    lines = probes_of(config.out)
    assert [(entry["epochs"], entry["step"]) for entry in lines] == [(pytest.approx(1.4), 4), (2, 6), (3, 9)]
    assert all("knn" in entry for entry in lines)


def test_probes_say_what_evaluate_says(config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "MOST_STEPS", 4)  # of both
    class_folders(tmp_path / "flowers" / "train", 6)
    class_folders(tmp_path / "flowers" / "test", 3, seed=1)
    config = dataclasses.replace(config, probe=tmp_path / "flowers")
    with seeded(3):
        model = create_model(config.model_config())
    save_checkpoint(tmp_path / "model.pth", model)
    data = find_probe_data(config, None, 11, Ranks(), torch.device("cpu"))
    probed = Probes(model, data, Ranks(), precision="fp32", epochs=3).begin(0, 0, Logged(None, None, None, ()))
    found = evaluate(
        EvaluateConfig(
            data=tmp_path / "flowers",
            checkpoint=(tmp_path / "model.pth",),
            probe=("knn", "linear"),
            references=False,
            cache=tmp_path / "cache",
            workers=0,
            device="cpu",
            precision="fp32",
        )
    )
    (row,) = (row for row in found.rows if (row.pool, row.feature_norm) == ("mean", "final"))
    (scores,) = row.scores
    assert probed is not None
    assert scores.knn is not None
    assert scores.linear is not None
    assert row.rank_me is not None
    assert probed.val_loss is None
    assert probed.knn == scores.knn[found.shown_k].value
    assert probed.linear == scores.linear.test.value
    assert probed.rank_me == pytest.approx(row.rank_me, rel=1e-5)


def test_the_loss_is_that_of_the_held_out_images(measured: PretrainConfig, tmp_path: Path) -> None:
    """Computed by the public model, one image at a time."""
    result = pretrain(dataclasses.replace(measured, probe=None, probe_every=20))
    model = mae.from_pretrained(measured.out)
    images = scan_images([tmp_path / "val"]).images
    chosen = sorted({number * 18 // 16 for number in range(16)})
    assert len(chosen) == 16
    noise = torch.rand(16, model.config.num_patches, generator=stream(MASK_SEED, "val mask"))
    losses = []
    for place, number in enumerate(chosen):
        img = normalise(EvalTransform(measured.image_size)(images.load(number, 3))[None])
        with torch.no_grad():
            losses.append(float(model(img, measured.mask_ratio, noise[place : place + 1])[0]))
    assert result.val_loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_number_of_processes_changes_nothing(measured: PretrainConfig) -> None:
    """Each process takes every second batch; together they have all images, in equally many passes."""

    class Two(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value]

    measured = dataclasses.replace(measured, batch_size=4)
    device = torch.device("cpu")
    held_out = held_out_images(measured.val)
    whole = find_probe_data(measured, held_out, 11, Ranks(), device)
    parts = [find_probe_data(measured, held_out, 11, Two(rank, 2, rank), device) for rank in range(2)]
    for name, images in (("val", lambda data: data.val), ("probe", lambda data: data.labelled.images)):
        batches = sorted((b for data in parts for b in images(data).batches), key=lambda batch: batch.places[0])
        assert len(batches) == len(images(whole).batches), name
        for batch, other in zip(batches, images(whole).batches, strict=True):
            assert np.array_equal(batch.places, other.places)
            assert torch.equal(batch.images, other.images)


def test_images_are_bounded(measured: PretrainConfig) -> None:
    data = find_probe_data(dataclasses.replace(measured, probe_images=12), None, 11, Ranks(), torch.device("cpu"))
    assert data.val is None
    assert data.labelled is not None
    assert (len(data.labelled.train), len(data.labelled.test)) == (9, 3)  # the same number of each class
    assert data.labelled.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_diverged_model_ends_no_run(measured: PretrainConfig) -> None:
    data = find_probe_data(measured, None, 11, Ranks(), torch.device("cpu"))
    model = create_model(measured.model_config())
    with torch.no_grad():
        model.cls_token.fill_(math.nan)
    probes = Probes(model, data, Ranks(), precision="fp32", epochs=3)
    assert data.labelled is not None
    assert all(math.isnan(value) for value in probes._probe(data.labelled))


def test_an_unreadable_image_is_left_out(measured: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "flowers/train/red/2.png").write_bytes((tmp_path / "flowers/train/red/2.png").read_bytes()[:60])
    data = find_probe_data(measured, None, 11, Ranks(), torch.device("cpu"))
    assert data.labelled is not None
    assert np.bincount(data.labelled.train_labels).tolist() == [6, 6, 5]
    assert np.bincount(data.labelled.test_labels).tolist() == [3, 3, 3]
    (note,) = data.notes
    assert "--probe: 1 of 27 images are unreadable" in note
    assert "red/2.png" in note


def bad_probe(folder: Path, kind: str) -> str:
    """Damage the probe's images; returns what the error must name."""
    if kind == "missing":
        return "no_such_folder"
    if kind == "one class":
        for part in ("train", "test"):
            for name in ("blue", "green"):
                for path in (folder / part / name).iterdir():
                    path.unlink()
        return "only one class"
    if kind == "class missing in test":
        for path in (folder / "test" / "red").iterdir():
            path.unlink()
        return "no folder red"
    for path in (folder / "train" / "red").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    return "are unreadable" if kind == "unreadable" else "no training image of red"


@pytest.mark.parametrize("kind", ["missing", "one class", "class missing in test", "unreadable", "a class unreadable"])
def test_bad_data_is_found_before_the_first_step(measured: PretrainConfig, tmp_path: Path, kind: str) -> None:
    named = bad_probe(tmp_path / "flowers", kind)
    config = measured
    if kind == "missing":
        config = dataclasses.replace(measured, probe=tmp_path / "no_such_folder")
    elif kind == "a class unreadable":
        config = dataclasses.replace(measured, max_unreadable=0.5)
    for run in (pretrain, functools.partial(plan_task, PRETRAINING)):
        with pytest.raises(DataError, match=named) as caught:
            run(config)
        assert "--probe" in caught.value.message
        assert not measured.out.exists()
