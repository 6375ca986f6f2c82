"""Classifier training in two processes, and after ``kill -9``."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from mae.checkpoints import load_checkpoint
from tests.distributed.test_ranks import (
    FORKING,
    SMALL,
    TORCHRUN,
    assert_close,
    logged,
    running,
    same,
    steps,
    weights,
)
from tests.processes import environment, finish, fork
from tests.unit.evaluation.small import checkpoint
from tests.unit.training.labelled import make_data


def command(folder: Path, name: str, out: Path, ranks: int, *options: str) -> list[str]:
    """Batches of four images over all processes."""
    start = [*TORCHRUN, *FORKING, "--nproc-per-node", str(ranks)] if ranks > 1 else []
    own = ["--augmenter", "torchvision", "--aa", "none", "--reprob", "0"] if name == "finetune" else []
    return [
        *start, SMALL, name, str(folder / "data"), "--init", str(folder / "encoder.pth"), "--out", str(out), *own,
        "--epochs", "3", "--warmup-epochs", "1", "--batch-size", str(4 // ranks), "--accum-iter", "2", "--lr", "2e-3",
        "--val-share", "0.4",  # 9 images, of which two processes have 3 and 2 batches
        "--workers", "0", "--device", "cpu", "--precision", "fp32", "--log-every", "1", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder, and an uninterrupted fine-tuning run."""
    folder = tmp_path_factory.mktemp("classifiers")
    make_data(folder / "data")
    checkpoint(folder / "encoder.pth")
    done = finish(fork(*command(folder, "finetune", folder / "whole", 1)))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("options", [(), ("--shard", "--clip-grad", "1000")], ids=["copies", "shards"])
def test_two_processes_learn_what_one_does(folder: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Neighbours are mixed, so parts of a batch with an even size are mixed like the whole batch."""
    done = finish(fork(*command(folder, "finetune", tmp_path / "two", 2, *options)))
    assert done.returncode == 0, done.stderr
    assert_close(steps(folder / "whole"), steps(tmp_path / "two"))
    one, two = (weights(place / "classifier.pth") for place in (folder / "whole", tmp_path / "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    results = [(place / "result.json").read_text() for place in (folder / "whole", tmp_path / "two")]
    assert '"test_images": 12' in results[0]
    assert '"test_images": 12' in results[1]


def test_shards_of_a_stopped_run_go_on_in_two_processes_and_in_one(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = running(command(folder, "finetune", run, 2, "--shard"), run, done=3, STEP_SECONDS="0.5")
    process.send_signal(signal.SIGTERM)
    stopped = finish(process)
    assert "stopped and saved" in stopped.stderr, stopped.stderr
    assert len(steps(run)) < 6
    alone = shutil.copytree(run, tmp_path / "alone")
    done = finish(fork(*command(folder, "finetune", run, 2, "--shard", "--resume", str(run))))
    assert done.returncode == 0, done.stderr
    done = finish(fork(SMALL, "finetune", "--resume", str(alone), "--no-shard"))
    assert done.returncode == 0, done.stderr
    for place in (run, alone):
        assert_close(steps(folder / "whole"), steps(place))
        classifier = load_checkpoint(place / "classifier.pth")
        assert classifier.extra["maecli"]["classes"] == ["blue", "green", "red"]
    official = load_checkpoint(run / "checkpoint-2.pth")
    assert official.extra["maecli"]["classes"] == ["blue", "green", "red"]
    assert same(official.state, weights(run / "checkpoint-last.dcp"))


def test_a_killed_run_goes_on_to_the_same_end(folder: Path) -> None:
    killed = folder / "killed"
    saving = ("--save-minutes", "0")
    done = finish(fork(*command(folder, "finetune", killed, 1, *saving), env=environment(KILL_AT="5")))
    assert done.returncode == -9, done.stderr
    done = finish(fork(SMALL, "finetune", "--resume", str(killed)))
    assert done.returncode == 0, done.stderr
    assert same(weights(folder / "whole/checkpoint-last.pth"), weights(killed / "checkpoint-last.pth"))
    assert same(*(load_checkpoint(folder / name).state for name in ("whole", "killed")))
    assert logged(folder / "whole") == logged(killed)
    assert (folder / "whole/result.json").read_bytes() == (killed / "result.json").read_bytes()
