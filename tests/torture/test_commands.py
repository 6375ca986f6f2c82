"""All commands on nearly the whole corpus of images: no traceback, no hang, at most 2 GB."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from mae.checkpoints import save_checkpoint
from mae.config import MAEConfig
from mae.models import create_model
from mae.system.seeding import seeded
from tests.cli.small import SIZES
from tests.processes import finish, fork, until
from tests.torture.images import all_cases, photo

# Runs the command line and writes the process's peak memory, which a parent process cannot read.
_MEASURED = """
import sys
import time
from collections.abc import Callable
from maecli.app import app
try:
    app(sys.argv[2:])
finally:
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
    open(sys.argv[1], "w").write(peak)
"""


# Files of several hundred thousand pieces take seconds; one stands for them.
CASES = [case for case in all_cases() if not case.name.startswith("pieces") or case.name == "pieces.gif"]


def run(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """The finished process, and its peak memory in GB."""
    done = finish(fork("-c", _MEASURED, folder / "peak", *words))
    return done, int((folder / "peak").read_text()) * 1024 / 1e9


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of ``CASES``; the commands only read them."""
    folder = tmp_path_factory.mktemp("corpus")
    for case in CASES:
        case.make(folder / case.name)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    config = MAEConfig(img_size=(32, 32), patch_size=8, decoder_num_heads=2, **sizes)
    with seeded(0):
        save_checkpoint(tmp_path / "tiny.pth", create_model(config))
    return tmp_path / "tiny.pth"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_reconstruct_draws_what_it_can_and_names_the_rest(tmp_path: Path, checkpoint: Path, corpus: Path) -> None:
    out = tmp_path / "grid.png"
    words = ["--checkpoint", str(checkpoint), "--out", str(out), "--limit", "1000", "--json"]
    done, peak = run(tmp_path, "reconstruct", str(corpus), *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert peak < 2
    drawn = {Path(one["path"]).name for one in json.loads(done.stdout)["images"]}
    assert drawn == {case.name for case in CASES if case.refused is None}
    skipped = {Path(one["path"]).name for one in json.loads(done.stdout)["skipped"]}
    assert skipped == {case.name for case in CASES if case.refused is not None} - {"folder.png"}


@pytest.mark.parametrize("name", ["fifo.png", "cut.jpg", "folder.png", "bomb_400mp.png"])
def test_a_file_asked_for_by_name_is_one_clear_line(tmp_path: Path, checkpoint: Path, name: str) -> None:
    (case,) = (case for case in all_cases() if case.name == name)
    case.make(tmp_path / name)
    words = ["reconstruct", tmp_path / name, "--checkpoint", checkpoint, "--quiet"]
    done = finish(fork("-m", "maecli", *words))
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert name in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_pretrain_learns_from_what_it_can_and_names_the_rest(tmp_path: Path, corpus: Path) -> None:
    words = [*SIZES, "--image-size", "16", "--patch-size", "8", "--batch-size", "16", "--epochs", "1"]
    words += ["--out", str(tmp_path / "run"), "--workers", "0", "--max-unreadable", "1", "--device", "cpu", "--json"]
    done, peak = run(tmp_path, "pretrain", str(corpus), *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert peak < 2
    report = (tmp_path / "run/unreadable.tsv").read_text(encoding="utf-8").splitlines()
    named = {Path(line.split("\t")[0]).name for line in report[1:]}
    assert {"fifo.png", "page.jpg", "pointer.jpg", "looping.png"} <= named
    assert all(line.count("\t") == 1 for line in report)


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the loader process in /proc")
def test_a_killed_loader_process_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for case in all_cases():
        if case.name.startswith("turned") and case.name.endswith(".png"):
            case.make(folder / case.name)
    words = [*SIZES, "--image-size", "16", "--patch-size", "8", "--batch-size", "2", "--workers", "1"]
    words += ["--out", str(tmp_path / "run"), "--device", "cpu", "--preview-every", "0", "--log-every", "1"]
    process = fork("-m", "maecli", "pretrain", folder, *words)
    log = tmp_path / "run/log.jsonl"
    until(lambda: log.exists() and log.stat().st_size > 0, process)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    done = finish(process)
    err = done.stderr
    assert done.returncode == 3, err
    assert "Traceback" not in err
    assert f"error: loader process {worker} was killed by SIGKILL" in err
    assert "memory" in err


def test_the_corpus_has_what_the_commands_need() -> None:
    assert len({case.name for case in all_cases()}) == len(all_cases()) > 150
    assert photo().shape == (16, 24, 3)
