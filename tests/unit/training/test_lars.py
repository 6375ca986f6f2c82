"""LARS against its formula in plain numbers."""

from __future__ import annotations

import math

import torch
from torch import nn

from mae.training.lars import LARS


def by_hand(weights: list[float], gradients: list[list[float]], *, matrix: bool, decay: float) -> list[float]:
    """Steps with lr 0.5, momentum 0.9, trust 0.01; matrices are decayed and scaled, vectors are not."""
    w, m = list(weights), [0.0] * len(weights)
    for gradient in gradients:
        update = [g + decay * x for g, x in zip(gradient, w, strict=True)] if matrix else list(gradient)
        if matrix:
            norm, size = math.hypot(*w), math.hypot(*update)
            scale = 0.01 * norm / size if norm > 0 and size > 0 else 1.0
            update = [scale * u for u in update]
        m = [0.9 * a + u for a, u in zip(m, update, strict=True)]
        w = [x - 0.5 * a for x, a in zip(w, m, strict=True)]
    return w


def test_two_steps_are_those_of_the_formula() -> None:
    gradients = [[1.0, -2.0, 0.5, 3.0], [0.25, 0.5, -1.0, 2.0]]
    for decay in (0.0, 0.1):
        for start in ([1.0, 2.0, -1.0, 0.5], [0.0] * 4):
            matrix = nn.Parameter(torch.tensor(start).view(2, 2))
            vector = nn.Parameter(torch.tensor(start))
            optimizer = LARS([matrix, vector], 0.5, weight_decay=decay, trust_coefficient=0.01)
            for gradient in gradients:
                matrix.grad, vector.grad = torch.tensor(gradient).view(2, 2), torch.tensor(gradient)
                optimizer.step()
            for parameter, is_matrix in ((matrix, True), (vector, False)):
                wanted = torch.tensor(by_hand(start, gradients, matrix=is_matrix, decay=decay))
                assert torch.allclose(parameter.detach().flatten(), wanted, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight], 1.0)
    weight.grad = torch.full((2, 2), 2.0)
    optimizer.step()
    kept, momentum = weight.detach().clone(), optimizer.state[weight]["mu"].clone()
    weight.grad = torch.full((2, 2), float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(weight, kept)
    assert torch.equal(optimizer.state[weight]["mu"], momentum)


def test_a_loss_scale_changes_nothing_but_which_steps_are_skipped() -> None:
    """Unscaled before the step, as ``TrainingStep`` does, or by the step itself."""
    for unscaled in (True, False):
        weight, plain = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        optimizer, other = (LARS([one], 1.0, weight_decay=0.1) for one in (weight, plain))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for gradient in (2.0, math.inf, 3.0):
            direction = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])  # not that of the weights, to which decay adds
            weight.grad = gradient * direction * scaler.scale(torch.ones(()))
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            if math.isfinite(gradient):
                plain.grad = gradient * direction
                other.step()
            assert torch.equal(weight, plain)
        assert float(scaler.scale(torch.ones(()))) == 4.0
