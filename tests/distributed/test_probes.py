"""Probes during training in two processes give the results of one process, with DDP and with shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_ranks import assert_close, finished, logged, steps
from tests.processes import ROOT
from tests.unit.evaluation.small import class_folders

MEASURED = ("val_loss", "knn", "linear", "rank_me")


def measured(out: Path) -> list[dict[str, Any]]:
    return [entry for entry in logged(out) if "val_loss" in entry]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    classes = tmp_path_factory.mktemp("classes")
    class_folders(classes / "train", 7)
    class_folders(classes / "test", 3, seed=1)
    return ["--epochs", "2", "--probe", str(classes), "--probe-every", "2", "--val", str(ROOT / "sample_images")]


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    finished(1, out, *options)
    assert [entry["epochs"] for entry in measured(out)] == [0, 1, 2]
    assert ["knn" in entry for entry in measured(out)] == [True, False, True]
    return out


@pytest.mark.parametrize("more", [(), pytest.param(("--shard",), marks=pytest.mark.slow)], ids=["copies", "shards"])
def test_two_processes_measure_what_one_does(
    alone: Path, options: list[str], more: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    finished(2, out, *options, *more)
    assert_close(steps(out), steps(alone))
    assert [entry["step"] for entry in measured(out)] == [entry["step"] for entry in measured(alone)]
    for one, two in zip(measured(alone), measured(out), strict=True):
        assert one.keys() == two.keys()
        for figure in set(MEASURED) & one.keys():
            assert two[figure] == pytest.approx(one[figure], rel=2e-3), figure
