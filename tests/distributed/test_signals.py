"""Signals stop a run cleanly, and its exit code names the signal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from mae.checkpoints import load_checkpoint
from tests.distributed.test_kill import command
from tests.distributed.test_ranks import logged
from tests.processes import Forked, environment, finish, fork, until


def started(out: Path) -> Forked:
    """A long run that has done some steps."""
    process = fork(*command(out, 20000, "--save-minutes", "5", "--preview-every", "0", "--save-every", "20000"))
    log = out / "log.jsonl"
    until(lambda: log.exists() and log.stat().st_size >= 1000, process)
    return process


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_and_says_which_it_was(tmp_path: Path, name: str, code: int) -> None:
    process = started(tmp_path / "run")
    process.send_signal(getattr(signal, name))
    done = finish(process)
    talk = done.stderr
    assert done.returncode == code, talk
    assert f"stopped and saved; resume with: maecli pretrain --resume {tmp_path / 'run'}" in talk
    position = load_checkpoint(tmp_path / "run" / "checkpoint-last.pth").extra["maecli"]["position"]
    assert position["step"] == max(entry.get("step", 0) for entry in logged(tmp_path / "run"))


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_before_training_one_signal_is_enough(tmp_path: Path, name: str, code: int) -> None:
    """During a scan or download of images, there is nothing to save."""
    process = fork(*command(tmp_path / "run", 2), env=environment(ENDLESS_SCAN="1"))
    assert process.stderr is not None
    assert process.stderr.readline() == "scanning\n"
    process.send_signal(getattr(signal, name))
    done = finish(process)
    talk = done.stderr
    assert done.returncode == code
    assert "Traceback" not in talk
    assert not (tmp_path / "run").exists()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    process = started(tmp_path / "run")
    process.send_signal(signal.SIGSTOP)  # so that both signals arrive before the run reacts to the first
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    done = finish(process)
    talk = done.stderr
    assert done.returncode == 143  # the exit code of the second
    assert "Traceback" not in talk
    assert f"resume the last state with: maecli pretrain --resume {tmp_path / 'run'}" in talk
    assert not (tmp_path / "run" / "checkpoint-last.pth").exists()
