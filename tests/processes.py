"""Starts processes for tests and ends them with their test; Python commands need not import torch again.

``fork`` starts a Python command in a process forked from one that has imported torch and the package and has run
nothing since. Its exit code, signals, streams, memory and numbers are those of a separate process, but it saves two
seconds of CPU time for imports. ``start`` starts any program as a new process, for tests of Python's start and of
imports.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
TIMEOUT = 100.0  # seconds; default time limit for a process

PRELOADED = [
    "torch.distributed.launcher", "torch.distributed.checkpoint", "torchvision.transforms.v2", "PIL.WebPImagePlugin",
    "mae.training.pretrain", "mae.reconstruction.run",
    "maecli.app", "maecli.commands.pretrain", "maecli.views.progress",
]  # fmt: skip

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(PRELOADED)
_running: list[Process] = []  # some may have ended


def environment(**more: str) -> dict[str, str]:
    """The environment of a started process: this one's, with the repository's code, one thread and no colours."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


def start(
    *words: str | Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT, **how: Any
) -> subprocess.Popen[Any]:
    """Start a program; its streams are pipes of text unless ``how`` tells ``Popen`` otherwise."""
    process = subprocess.Popen(
        [str(word) for word in words],
        env=environment() if env is None else env,
        cwd=cwd,
        start_new_session=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how),
    )
    _running.append(process)
    return process


def start_python(*words: str | Path, **how: Any) -> subprocess.Popen[Any]:
    """Start ``python WORDS...`` as a new process."""
    return start(sys.executable, *words, **how)


def fork(
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    stdout: int | IO[Any] = subprocess.PIPE,
    stderr: int | IO[Any] = subprocess.PIPE,
    stdin: int | IO[Any] = subprocess.DEVNULL,
) -> Forked:
    """Start ``python WORDS...`` with torch loaded before; WORDS begin with ``-m``, ``-c`` or the name of a script."""
    streams = (stdin, stdout, stderr)
    process = Forked([str(word) for word in words], environment() if env is None else env, cwd, streams)
    _running.append(process)
    return process


def run_forked(
    command: list[str], *, input: str = "", env: Mapping[str, str] | None = None, **_: Any
) -> subprocess.CompletedProcess[str]:
    """A replacement for ``subprocess.run`` if the tested code runs a Python process and reads its output."""
    assert command[0] == sys.executable
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        file.write(input)
        file.seek(0)
        return finish(fork(*command[1:], env=env, stdin=file))


def finish(process: Process, timeout: float | None = TIMEOUT) -> subprocess.CompletedProcess[Any]:
    """Wait for the end of a process.

    Raises:
        TimeoutExpired: It takes longer, and is killed.
    """
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def until(true: Callable[[], bool], process: Process, timeout: float = TIMEOUT) -> None:
    """Wait until a running process has done something."""
    end = time.monotonic() + timeout
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def end_all() -> None:
    """End all processes that tests have started and not ended, and their descendants."""
    while _running:
        process = _running.pop()
        _kill(process)
        process.wait()
        for stream in (process.stdout, process.stderr, process.stdin):
            if stream is not None:
                stream.close()


class Forked:
    """The part of ``subprocess.Popen`` that tests need, for a process made by ``multiprocessing``'s fork server."""

    stdin = None

    def __init__(self, words: list[str], env: Mapping[str, str], cwd: Path, streams: tuple[int | IO[Any], ...]) -> None:
        self.args = words
        with contextlib.ExitStack() as ours:
            (_, read), (self.stdout, out), (self.stderr, err) = (_stream(stream, ours) for stream in streams)
            self._process = _forks.Process(target=_become, args=(words, dict(env), cwd, (read, out, err)))
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, as in ``Popen``: negative for a signal, None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same as ``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process's end.

        Raises:
            TimeoutExpired: It takes longer.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what it writes until its end; unlike ``Popen``, kill it when it takes longer."""
        with ThreadPoolExecutor(2) as readers:
            parts = [readers.submit(stream.read if stream else str) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                _kill(self)
                raise
            out, err = (part.result() for part in parts)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal while it runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As ``kill -9``."""
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[Any]


class _Descriptor:
    """A file descriptor that an argument of a ``multiprocessing.Process`` takes along."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self.number),)


def _received(passed: Any) -> _Descriptor:
    return _Descriptor(passed.detach())


def _stream(wanted: int | IO[Any], ours: contextlib.ExitStack) -> tuple[IO[str] | None, _Descriptor]:
    """Our end of a stream, if it is a pipe, and the process's end, which is closed here after the start."""
    if wanted == subprocess.PIPE:
        reading, writing = os.pipe()
        ours.callback(os.close, writing)
        return os.fdopen(reading, encoding="utf-8"), _Descriptor(writing)
    if wanted == subprocess.DEVNULL:
        wanted = os.open(os.devnull, os.O_RDWR)
        ours.callback(os.close, wanted)
    return None, _Descriptor(wanted if isinstance(wanted, int) else wanted.fileno())


def _become(words: list[str], env: dict[str, str], cwd: Path, streams: tuple[_Descriptor, ...]) -> None:
    """Run ``python WORDS...`` in a forked process."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # as Python has it, for processes that it starts
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    first, *rest = words
    if "torch.distributed.run" in words:
        # Each entry of its log would look through all modules for the caller's name.
        from torch.distributed.elastic.rendezvous import dynamic_rendezvous

        dynamic_rendezvous.get_method_name = lambda depth=2: "unknown"
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(first, run_name="__main__")


def _kill(process: Process) -> None:
    """Kill a process and all its descendants."""
    if process.poll() is None:
        # The process first: one that waits for a killed child would end by itself, with another exit code.
        for pid in [process.pid, *_started_by(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    # When a process and its group have ended, the number may belong to another process.
    if process.poll() is None or not _is_there(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _started_by(pid: int) -> list[int]:
    """All descendants of a process, if the system provides them."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children = [int(child) for child in task.read_text().split()]
            found += [*children, *(inner for child in children for inner in _started_by(child))]
    return found
