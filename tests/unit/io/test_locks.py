"""Locks end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from mae.io.locks import take_lock
from tests.processes import fork

HOLD = """
import os, sys, time
from pathlib import Path
from mae.io.locks import take_lock
release = take_lock(Path(sys.argv[1]), wait=False)
child = os.fork()  # as torch starts a loader's processes
if child:
    print(child, flush=True)
time.sleep(60)
"""


def test_one_holds_and_others_are_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    release = take_lock(path, wait=False)
    with pytest.raises(TimeoutError):
        take_lock(path, wait=False)
    release()
    assert path.exists()
    take_lock(path, wait=False)()


def test_others_wait_until_the_holder_is_done(tmp_path: Path) -> None:
    order: list[str] = []
    release = take_lock(tmp_path / "x.lock", wait=True)

    def second() -> None:
        unlock = take_lock(tmp_path / "x.lock", wait=True)
        order.append("second")
        unlock()

    waiting = threading.Thread(target=second)
    waiting.start()
    waiting.join(0.1)
    order.append("first")
    release()
    waiting.join(10)
    assert order == ["first", "second"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_killed_holder_lets_go_though_what_it_forked_lives_on(tmp_path: Path) -> None:
    holder = fork("-c", HOLD, tmp_path / "x.lock")
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(TimeoutError):
            take_lock(tmp_path / "x.lock", wait=False)
        holder.kill()
        holder.wait(10)
        os.kill(child, 0)  # the process is alive
        take_lock(tmp_path / "x.lock", wait=False)()
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first = take_lock(tmp_path / "x.lock", wait=False)
    take_lock(tmp_path / "x.lock", wait=True)()
    first()


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "nowhere" / "x.lock", wait=False)
