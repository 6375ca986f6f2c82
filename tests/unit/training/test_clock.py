"""Throughput, as read after one step or after a group of steps."""

from __future__ import annotations

import pytest

from mae.training import clock
from mae.training.clock import Throughput


def test_all_steps_that_are_read_together_have_their_groups_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator 20 steps are read at once, which may take longer than the ten seconds of the average."""
    now = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    throughput = Throughput()
    for _ in range(3):
        now += 40
        throughput.images += 20 * 64
        assert [throughput.rate()[0] for _ in range(20)] == pytest.approx([32.0] * 20)


def test_waiting_is_added_up_and_a_pause_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    throughput = Throughput()
    for _ in range(2):
        with throughput.waiting():
            now += 1
        now += 3
        throughput.images += 8
    with throughput.paused():
        now += 100
    assert throughput.rate() == (2.0, 0.25)
    assert throughput.epoch() == (8.0, 16, 0.25)
    now += 4
    throughput.images += 8
    assert throughput.epoch() == (4.0, 8, 0.0)


def test_the_rate_is_that_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    throughput, rates = Throughput(), []
    for images in [10] * 20 + [20] * 20:
        now += 1
        throughput.images += images
        rates.append(throughput.rate()[0])
    assert rates[19] == 10
    assert 10 < rates[25] < 20
    assert rates[39] == 20
