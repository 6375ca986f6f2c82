"""What holds for every test: one thread, a time limit, a cache of its own, and no process left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: models this small only lose time by more

from tests import processes

# Hundreds of processes import the same modules: compiled code is kept, also where the environment says otherwise.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script. Commands under test would inherit it, and Ctrl-C is one of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = 3600.0  # seconds; the limit of what is run only when asked for
# What takes longest starts first, so that no process is left alone with it at the end. One that waits for processes
# it started, one that computes, and so on.
FIRST = (
    "distributed/test_ranks.py", "unit/training/test_pretrain.py",
    "e2e/test_documents.py", "unit/comparison/test_run.py",
    "distributed/test_kill.py", "unit/training/test_finetune.py",
    "distributed/test_signals.py", "unit/comparison/test_damage.py",
    "distributed/test_classifiers.py", "rehearsal/test_fake_cuda.py",
    "unit/profiling/test_measured.py", "unit/data/test_augment.py",
)  # fmt: skip


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three processes for whole folders; none but this one for files by name, and for what is slow and may be timed.

    More than the cores of a small machine, because many tests wait for processes that start or end; few, because each
    imports everything.
    """
    named = any(Path(word.partition("::")[0]).is_file() for word in config.args)
    return 0 if named or "not slow" not in config.option.markexpr else 3


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; and tests that are marked slow or fuzz get longer than ``timeout`` in pyproject.toml."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        asked_for = item.get_closest_marker("slow") or item.get_closest_marker("fuzz")
        if asked_for and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW))


def pytest_collection_finish() -> None:
    """The garbage collector leaves out what is imported and collected, which took it 5 % of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _what_is_kept_for_later_goes_with_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither are the user's scans, features and downloads found, nor are others left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """However the test ends, its time limit included."""
    yield
    processes.end_all()
