"""What holds for every test: one thread, a time limit, and no process left behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: models this small only lose time by more

from tests import processes

SLOW = 3600.0  # seconds; the limit of what is run only when asked for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that are marked slow or fuzz longer than ``timeout`` in pyproject.toml."""
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("fuzz"):
            item.add_marker(pytest.mark.timeout(SLOW))


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """However the test ends, its time limit included."""
    yield
    processes.end_all()
