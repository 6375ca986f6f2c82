"""Compiling is timed, reports when it is not used, and does not change during a run."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from mae.config import MAEConfig
from mae.models import create_model
from mae.training.compiling import compile_if_it_pays
from mae.training.parallel import PretrainingLoss
from mae.training.step import TrainingStep

CONFIG = MAEConfig((16, 16), 8, 3, 24, 1, 2, 16, 1, 2)


class Slower(nn.Module):
    def __init__(self, loss: nn.Module, seconds: float) -> None:
        super().__init__()
        self.loss = loss
        self.seconds = seconds

    def forward(self, *batch: Any) -> Any:
        time.sleep(self.seconds)
        return self.loss(*batch)


def a_pass(loss: nn.Module) -> None:
    loss(torch.zeros(2, 3, 16, 16), 0.75, torch.rand(2, 4)).backward()


def test_what_is_faster_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model(CONFIG)
    monkeypatch.setattr(torch, "compile", lambda loss: Slower(loss, 0.05))
    loss, compiled, note = compile_if_it_pays(PretrainingLoss(model), a_pass)
    assert isinstance(loss, PretrainingLoss)
    assert not compiled
    assert "so it is not used" in note
    # The plain loss is the slow one now.
    monkeypatch.setattr(torch, "compile", lambda loss: Slower(loss, 0.0))
    loss, compiled, note = compile_if_it_pays(
        PretrainingLoss(model), lambda loss: a_pass(loss if isinstance(loss, Slower) else Slower(loss, 0.05))
    )
    assert isinstance(loss, Slower)
    assert compiled
    assert "times as fast as the plain one" in note


def test_a_compiler_that_fails_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(loss: nn.Module) -> nn.Module:
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    loss, compiled, note = compile_if_it_pays(PretrainingLoss(create_model(CONFIG)), a_pass)
    assert isinstance(loss, PretrainingLoss)
    assert (compiled, note) == (False, "torch.compile failed, so the step is not compiled: no C++ compiler")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_compiled_step_has_the_plain_ones_gradients() -> None:
    losses, gradients = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = create_model(CONFIG)
        loss = torch.compile(PretrainingLoss(model)) if compiled else None
        step = TrainingStep(model, "fp32", lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, loss=loss)  # type: ignore[arg-type]
        images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        losses.append(float(step.backward(images, 0.75, torch.rand(2, 4, generator=torch.Generator().manual_seed(2)))))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))
