"""The figures of a step that is run again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mae.training import replay
from tests.unit.training.test_step import Brightness, images


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("power", [4, None])
def test_the_norm_is_that_of_the_mean_of_the_batches_at_any_loss_scale(precision: str, power: int | None) -> None:
    """A run in another precision has no loss scale."""
    scaler: dict[str, Any] = {} if power is None else torch.amp.GradScaler("cpu", init_scale=2.0**power).state_dict()
    model = Brightness()
    found = replay._take(model, model, [images(1.0), images(3.0)], [(), ()], precision, scaler)
    assert found == replay.Pass(precision, loss=4.0, grad_norm=2.0, first_module=None, bad_gradients=0)
    assert model.weight.grad is None


def test_a_gradient_is_bad_at_the_loss_scale_of_the_run_and_not_at_another() -> None:
    model = Brightness()
    largest = [images(6e4)]
    for scale, bad in ((1.0, 0), (2.0**120, 1)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale).state_dict()
        assert replay._take(model, model, largest, [()], "fp16", scaler).bad_gradients == bad
