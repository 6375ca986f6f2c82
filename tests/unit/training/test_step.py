"""One optimiser step: its inputs, the gradients that it adds up, and the update."""

from __future__ import annotations

import unittest.mock
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae.data.transforms import normalise
from mae.training.optim import adamw
from mae.training.step import TrainingStep


class Brightness(nn.Module):
    """A weight times the mean of the images, which is its gradient; model and loss in one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, imgs: Tensor) -> Tensor:
        return (self.weight * imgs.mean()).sum()


def step_of(model: Brightness, **options: Any) -> TrainingStep:
    """Plain gradient descent at half of the learning rate."""
    groups = [{"params": [model.weight], "lr_scale": 0.5}]
    return TrainingStep(model, "fp32", loss=model, optimizer=lambda: torch.optim.SGD(groups, lr=0.0), **options)


def images(value: float) -> Tensor:
    return torch.full((2, 3, 4, 4), value)


def test_bytes_are_normalised_and_floats_are_not() -> None:
    pixels = torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4)
    step = step_of(Brightness())
    assert step.loss(pixels).item() == pytest.approx(2 * normalise(pixels).mean().item())
    assert step.loss(images(7.0)).item() == 14.0


def test_gradients_are_added_by_share_and_cleared_by_the_step() -> None:
    model = Brightness()
    step = step_of(model)
    losses = [step.backward(images(1.0), share=0.25), step.backward(images(3.0), share=0.75)]
    assert [float(loss) for loss in losses] == [2.0, 6.0]
    assert not any(loss.requires_grad for loss in losses)  # a graph that is kept would fill memory
    assert float(step.update(0.1)) == 2.5
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.1 * 2.5)
    assert model.weight.grad is None


@pytest.mark.parametrize(("largest", "applied"), [(1.0, 1.0), (10.0, 2.5)])
def test_larger_gradients_are_scaled_down_and_their_norm_is_told(largest: float, applied: float) -> None:
    model = Brightness()
    step = step_of(model, clip_grad=largest)
    step.backward(images(2.5))
    assert float(step.update(0.1)) == 2.5
    assert model.weight.item() == pytest.approx(2 - 0.5 * 0.1 * applied)


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_that_is_not_finite_is_not_applied_and_the_next_one_is(fused: bool) -> None:
    model = Brightness()
    step = step_of(model)
    if fused:
        step.optimizer = adamw([{"params": [model.weight]}], lr=0.0, betas=(0.9, 0.95))
    step.backward(images(float("inf")))
    assert not step.update(0.1).isfinite()
    assert model.weight.item() == 2
    step.backward(images(1.0))
    step.update(0.1)
    assert 1 < model.weight.item() < 2


def test_a_copy_to_an_apple_gpu_is_done_before_its_source_is_freed() -> None:
    """The noise of a batch lives no longer than the call; torch's copy that does not wait would read freed memory."""
    noise: Any = unittest.mock.Mock()
    step: Any = SimpleNamespace(device=torch.device("mps", 0))
    assert TrainingStep._on_device(step, noise) is noise.to.return_value
    assert noise.mock_calls == [unittest.mock.call.to(step.device)]
