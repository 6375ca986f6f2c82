"""Runs of several processes over Gloo, started by torchrun.

Torchrun is forked from a process that has imported torch, and forks its processes in turn. One of the two runs in which
a process is killed uses the plain torchrun.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.checkpoints import load_checkpoint
from mae.errors import CheckpointError
from tests.processes import ROOT, environment, finish, fork, start_python, until

SMALL = str(Path(__file__).parent / "small.py")
RECIPE = [
    "--variant", "vit_tiny", "--image-size", "32", "--patch-size", "8", "--accum-iter", "2", "--warmup-epochs", "1",
    "--lr", "2e-3", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--log-every", "1",
    "--preview-every", "0",
]  # fmt: skip


TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]
FORKING = ["--start-method", "fork", "--run-path"]


def command(ranks: int, out: Path, *options: str, torchrun: Sequence[str] = (*TORCHRUN, *FORKING)) -> list[str]:
    """Torchrun with several processes, or plain Python for one; four images per global batch."""
    start = [*torchrun, "--nproc-per-node", str(ranks)] if ranks > 1 else []
    arguments = ["pretrain", str(ROOT / "sample_images"), "--out", str(out), *RECIPE, *options]
    if "--resume" not in options:
        arguments += ["--batch-size", str(4 // ranks)]
    return [*start, SMALL, *arguments]


def run(ranks: int, out: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return finish(fork(*command(ranks, out, *options), env=environment(**more)), timeout=240)


def finished(ranks: int, out: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    done = run(ranks, out, *options, **more)
    assert done.returncode == 0, done.stderr
    return done


def running(words: list[str], out: Path, start: Callable[..., Any] = fork, *, done: int = 5, **more: str) -> Any:
    """Start a process and wait until it has done some steps."""
    process = start(*words, env=environment(**more))
    until(lambda: (out / "log.jsonl").exists() and len(steps(out)) >= done, process)
    return process


def logged(out: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "data_wait", "seconds"}
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def steps(out: Path) -> list[dict[str, Any]]:
    try:
        return [entry for entry in logged(out) if "loss" in entry]
    except json.JSONDecodeError:  # a line is being written
        return []


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).state


def assert_close(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    """The same steps, with the same losses and gradients except for rounding."""
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
    for one, other in zip(first, second, strict=True):
        assert one["lr"] == other["lr"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=2e-5)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finished(1, out, "--epochs", "4")
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Eight epochs in two processes without interruption, with these options."""

    @functools.cache
    def run(*options: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        finished(2, out, "--epochs", "8", *options)
        return out

    return run


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six epochs in one process."""
    out = tmp_path_factory.mktemp("six") / "run"
    finished(1, out, "--epochs", "6")
    return out


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [(), ("--shard", "--save-every", "2")], ids=["copies", "shards"])
def test_several_processes_train_as_one_and_speak_once(
    alone: Path, tmp_path: Path, ranks: int, options: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    done = finished(ranks, out, "--epochs", "4", "--json", *options)
    assert_close(steps(out), steps(alone))
    document = json.loads(done.stdout)  # one document, whatever the number of processes
    assert (document["steps"], document["stopped"]) == (8, False)
    assert [entry["epoch"] for entry in logged(out) if "train_loss" in entry] == [0, 1, 2, 3]
    official = weights(Path(document["checkpoint"]))
    expected = weights(alone / "checkpoint-last.pth")
    assert official.keys() == expected.keys()
    # Adam's first steps have the size of the learning rate for any gradient, so rounding is visible.
    assert all(torch.allclose(official[key], expected[key], atol=2e-4) for key in expected)
    if options:
        names = sorted(path.name for path in out.glob("checkpoint*"))
        assert names == ["checkpoint-1.pth", "checkpoint-3.pth", "checkpoint-last-1.dcp", "checkpoint-last.dcp"]
        assert same(weights(out / "checkpoint-last.dcp"), official)
        assert load_checkpoint(out / "checkpoint-last.dcp").config == load_checkpoint(out / "checkpoint-3.pth").config


@pytest.mark.parametrize(
    ("options", "torchrun", "start"),
    [
        pytest.param((), TORCHRUN, start_python, marks=pytest.mark.slow),
        (("--shard",), (*TORCHRUN, *FORKING), fork),
    ],
    ids=["copies-plain", "shards"],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path,
    options: tuple[str, ...],
    torchrun: Sequence[str],
    start: Callable[..., Any],
    whole: Callable[..., Path],
) -> None:
    """The plain torchrun signals the process group of each process, with its loader processes."""
    epochs = ("--epochs", "8", *options)
    parted = tmp_path / "parted"
    words = command(2, parted, *epochs, "--workers", "1", torchrun=torchrun)
    process = running(words, parted, start, STEP_SECONDS="0.5")
    process.send_signal(signal.SIGTERM)
    stopped = finish(process)
    assert stopped.returncode != 0
    assert "stopped and saved" in stopped.stderr
    done = len(steps(parted))
    assert 5 <= done < 16
    finished(2, parted, *epochs, "--resume", str(parted))
    assert logged(parted) == logged(whole(*options))
    last = "checkpoint-7.pth" if options else "checkpoint-last.pth"
    assert same(weights(parted / last), weights(whole(*options) / last))


@pytest.mark.parametrize("options", [(), pytest.param(("--shard",), marks=pytest.mark.slow)], ids=["copies", "shards"])
def test_another_number_of_processes_goes_on_with_the_same_images(
    tmp_path: Path, six: Path, options: tuple[str, ...]
) -> None:
    """Two processes, then one: each step has the images and masks of a run in one process."""
    parted = tmp_path / "parted"
    finished(2, parted, "--epochs", "6", "--save-every", "2", *options)
    assert (parted / ("checkpoint-last.dcp" if options else "checkpoint-last.pth")).exists()
    for path in parted.glob("checkpoint-last*"):
        path.rename(parted / f"gone-{path.name}")
    (parted / "checkpoint-5.pth").unlink(missing_ok=True)
    done = finished(1, parted, "--resume", str(parted), "--no-shard")
    assert "batch of 4 images is divided among 1 process, 4 images each" in " ".join(done.stderr.split())
    assert_close(steps(parted), steps(six))
    # Again: the batch is that of the run, not that of the processes.
    done = finished(1, parted, "--resume", str(parted), "--epochs", "7")
    assert "epochs 6 -> 7: the cosine is stretched" in done.stderr
    assert len(steps(parted)) == 14


def test_a_loss_that_one_process_lost_is_left_out_by_all(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = finished(2, out, "--epochs", "4", SPOIL_RANK="1")
    assert "step 1 was skipped: its loss is nan" in done.stderr
    assert [(entry["step"], entry.get("left_out", False)) for entry in steps(out)] == [
        (1, True), *((number, False) for number in range(2, 9)),
    ]  # fmt: skip
    failed = run(2, tmp_path / "more", "--epochs", "4", "--nan-limit", "2", SPOIL_RANK="1", SPOIL_BATCHES="9")
    assert failed.returncode != 0
    assert "process 1: error: the loss became nan at step 2" in failed.stderr
    assert [path.name for path in (tmp_path / "more").glob("replay*")] == ["replay-1.pth"]


@pytest.mark.parametrize(
    ("options", "torchrun", "start"),
    [
        pytest.param((), TORCHRUN, start_python, marks=pytest.mark.slow),
        (("--shard",), (*TORCHRUN, *FORKING), fork),
    ],
    ids=["copies-plain", "shards"],
)
def test_a_killed_process_ends_the_run_with_its_name(
    tmp_path: Path, options: tuple[str, ...], torchrun: Sequence[str], start: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    process = running(command(2, out, "--epochs", "2000", *options, torchrun=torchrun), out, start)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    done = finish(process, timeout=60)
    talk = done.stderr
    assert done.returncode != 0
    assert "process 0: error: process 0 of 2 lost contact with another one" in talk
    assert "Traceback" not in talk.partition("lost contact")[0]
    # In torchrun's table: as root cause, unless torchrun on a busy machine sees both ends at the same time.
    assert re.search(r"rank +: 1 \(.*?SIGKILL", talk, re.DOTALL)


def test_a_process_that_cannot_start_ends_the_others_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["pretrain", str(tmp_path / "empty"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = finish(fork(*TORCHRUN, *FORKING, "--nproc-per-node", "2", SMALL, *words))
    assert done.returncode != 0
    assert "process 0: error: no image in" in done.stderr
    assert "process 1: error" not in done.stderr.replace("process 1: error: process 1 of 2 lost contact", "")
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_a_broken_run_again(tmp_path: Path, whole: Callable[..., Path]) -> None:
    """A process is killed and all are restarted; the result is that of an uninterrupted run."""
    epochs = ("--epochs", "8", "--save-minutes", "0", "--auto-resume")
    broken = tmp_path / "broken"
    torchrun = [*TORCHRUN, *FORKING, "--max-restarts", "1"]
    process = running(command(2, broken, *epochs, torchrun=torchrun), broken, STEP_SECONDS="0.2")
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert "lost contact" in done.stderr
    assert logged(broken) == logged(whole())
    assert same(weights(broken / "checkpoint-last.pth"), weights(whole() / "checkpoint-last.pth"))


def process_of_rank(parent: int, rank: int) -> int:
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text() == f"rank {rank}\n":
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


def test_batches_that_cannot_be_shared_are_refused(tmp_path: Path, alone: Path) -> None:
    out = shutil.copytree(alone, tmp_path / "run")
    failed = run(3, out, "--resume", str(out), "--epochs", "5")
    assert failed.returncode != 0
    assert "a batch of 4 images cannot be shared equally by 3 processes" in failed.stderr


def test_a_table_of_shards_that_would_run_code_is_refused(tmp_path: Path, whole: Callable[..., Path]) -> None:
    import pickle

    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    shards = shutil.copytree(whole("--shard") / "checkpoint-last.dcp", tmp_path / "checkpoint-last.dcp")
    load_checkpoint(shards)
    (shards / ".metadata").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"\.metadata is refused: it asks for"):
        load_checkpoint(shards)
    assert not canary.exists()
    (shards / ".metadata").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="is refused"):
        load_checkpoint(shards)
