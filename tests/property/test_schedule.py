"""Properties of the learning rate schedule of any run."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae.training.schedule import lr_at, scaled_lr

rates = st.floats(1e-8, 1.0)


@given(rates, st.floats(0, 1), st.just(0.0) | st.floats(1e-6, 0.99), st.integers(1, 2000), st.integers(2, 50))
def test_up_then_down_within_bounds(lr: float, low: float, warm: float, epochs: int, points: int) -> None:
    min_lr, warmup = lr * low, epochs * warm

    def at(epoch: float) -> float:
        return lr_at(epoch, lr=lr, min_lr=min_lr, warmup_epochs=warmup, epochs=epochs)

    up = [at(warmup * point / points) for point in range(points)] if warmup else []
    down = [at(warmup + (epochs - warmup) * point / points) for point in range(points + 1)]
    near = lr * 1e-9
    assert all(0 <= one <= two + near for one, two in itertools.pairwise(up))
    assert all(one >= two - near for one, two in itertools.pairwise(down))
    assert all(value <= lr + near for value in up)
    assert all(min_lr - near <= value <= lr + near for value in down)
    if warmup:
        assert up[0] == 0
        assert up[points // 2] == pytest.approx(lr * (points // 2) / points)
    assert down[0] == pytest.approx(lr)
    assert down[-1] == pytest.approx(min_lr, abs=near)
    assert at(warmup + (epochs - warmup) / 2) == pytest.approx((lr + min_lr) / 2)


@given(rates, st.integers(1, 2**20), st.integers(1, 64))
def test_the_rate_grows_with_the_batch(base: float, batch: int, times: int) -> None:
    assert scaled_lr(base, 256) == base
    assert scaled_lr(base, batch * times) == pytest.approx(times * scaled_lr(base, batch))
