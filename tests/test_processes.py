"""Processes that tests start behave like real ones and end with their test."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PRELOADED, ROOT, end_all, environment, finish, fork, run_forked, start_python

ENDLESS = "import time\nprint('here', flush=True)\ntime.sleep(600)"


def test_a_fork_says_and_ends_what_python_would(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['X'], multiprocessing.get_start_method())\n"
        "print('talk', file=sys.stderr)\n"
        "sys.exit(7)"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    for words in (["-c", code, "a"], [script, "a"]):
        forked, fresh = (finish(how(*words, cwd=tmp_path, env=environment(X="1"))) for how in (fork, start_python))
        said = f"['a'] {tmp_path} 1 {multiprocessing.get_start_method()}\n"
        assert (forked.returncode, forked.stdout, forked.stderr) == (7, said, "talk\n")
        assert (fresh.returncode, fresh.stdout, fresh.stderr) == (7, forked.stdout, forked.stderr)
    assert (
        finish(fork("-m", "maecli", "profile", "--quiet")).stdout
        == finish(start_python("-m", "maecli", "profile", "--quiet")).stdout
    )


def test_a_fork_has_torch_and_nothing_computed_before() -> None:
    code = f"import sys, threading; print({set(PRELOADED)} - sys.modules.keys(), threading.active_count())"
    assert finish(fork("-c", code)).stdout == "set() 1\n"
    assert finish(fork("-c", "raise ValueError('x')")).returncode == 1


@pytest.mark.parametrize("how", [fork, start_python])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it_and_is_its_exit_code(how: Callable[..., Any], number: signal.Signals) -> None:
    process = how("-c", ENDLESS)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.wait(timeout=30) == process.returncode == -number


def test_its_streams_go_where_they_are_told(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        done = finish(fork("-c", "print('out')", stdout=file, stderr=subprocess.DEVNULL))
    assert (done.stdout, done.stderr, (tmp_path / "out").read_text()) == ("", "", "out\n")
    reading, writing = os.pipe()
    os.close(reading)
    process = fork("-c", "import os; os.write(1, b'x')", stdout=writing)
    os.close(writing)
    assert "BrokenPipeError" in finish(process).stderr


def test_the_code_under_test_may_be_given_a_fork() -> None:
    code = "import os, sys; print(os.environ['X'] + sys.stdin.read())"
    words = [sys.executable, "-c", code]
    for run in (run_forked, subprocess.run):
        done = run(words, input="b", env=environment(X="a"), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ab\n", "")


@pytest.mark.parametrize("how", [fork, start_python])
def test_what_takes_too_long_is_killed(how: Callable[..., Any]) -> None:
    process = how("-c", ENDLESS)
    with pytest.raises(subprocess.TimeoutExpired):
        finish(process, timeout=0.2)
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds a process's children in /proc")
@pytest.mark.parametrize("how", [fork, start_python])
def test_all_that_a_test_started_ends_with_it(how: Callable[..., Any]) -> None:
    """Also a child in its own session, like those of torchrun."""
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {ENDLESS!r}], stdout=sys.stderr, start_new_session=True)\n"
        "print(child.pid, flush=True)\nchild.wait()"
    )
    process = how("-c", code)
    child = Path("/proc") / process.stdout.readline().strip()
    assert process.stderr.readline() == "here\n"
    end_all()
    assert process.poll() == -signal.SIGKILL
    end = time.monotonic() + 30
    while child.exists() and "\tZ" not in (child / "status").read_text():  # a zombie if no process adopts it
        assert time.monotonic() < end


def test_a_test_past_its_time_ends_with_its_processes(tmp_path: Path) -> None:
    (tmp_path / "test_endless.py").write_text(
        "import pathlib\nfrom tests.processes import finish, start_python\n"
        "def test_endless():\n"
        "    process = start_python('-c', 'import time; time.sleep(600)')\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(process.pid))\n"
        "    finish(process)\n"
    )
    words = ["-m", "pytest", "-q", "--rootdir", tmp_path, "-c", ROOT / "pyproject.toml", "-p", "tests.conftest"]
    began = time.monotonic()
    done = finish(fork(*words, "-n", "0", "-p", "no:cacheprovider", "--timeout", "1", tmp_path / "test_endless.py"))
    assert done.returncode == 1
    assert "Timeout (>1.0s)" in done.stdout
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_stranger_with_the_number_of_an_ended_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process numbers are reused: the number of an ended process may belong to another program."""
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, number: killed.append(group))
    process = start_python("-c", "pass")
    assert finish(process).returncode == 0
    process.pid = os.getpid()
    end_all()
    assert killed == []
    process = start_python("-c", "pass")
    finish(process)
    end_all()
    assert killed == [process.pid]
