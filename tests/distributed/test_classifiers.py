"""Classifiers in two processes, and after a kill -9."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mae.checkpoints import load_checkpoint
from tests.distributed.test_ranks import FORKING, SMALL, TORCHRUN, assert_close, logged, same, steps, weights
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
        "--workers", "0", "--device", "cpu", "--precision", "fp32", "--log-every", "1", *options,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, an encoder, and a fine-tuning run that nothing happened to."""
    folder = tmp_path_factory.mktemp("classifiers")
    make_data(folder / "data")
    checkpoint(folder / "encoder.pth")
    done = finish(fork(*command(folder, "finetune", folder / "whole", 1)))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_learn_what_one_does(folder: Path) -> None:
    """Neighbours are mixed, so even parts of a batch are mixed as the whole is."""
    done = finish(fork(*command(folder, "finetune", folder / "two", 2)))
    assert done.returncode == 0, done.stderr
    assert_close(steps(folder / "whole"), steps(folder / "two"))
    one, two = (weights(folder / name / "classifier.pth") for name in ("whole", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    results = [(folder / name / "result.json").read_text() for name in ("whole", "two")]
    assert '"test_images": 12' in results[0]
    assert '"test_images": 12' in results[1]


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
