"""Heads in checkpoint files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mae.checkpoints.classifiers import folded, pool_of
from mae.errors import CheckpointError
from mae.models.classifier import BATCH_NORM_EPS

WIDTH, CLASSES = 6, 3


@pytest.mark.parametrize("affine", [False, True])
def test_the_batch_norm_of_a_probe_is_folded_into_its_linear_layer(affine: bool) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=affine, eps=BATCH_NORM_EPS), nn.Linear(WIDTH, CLASSES)).double()
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    head.state_dict()["0.running_var"][0] = BATCH_NORM_EPS  # of a feature that is nearly constant
    plain = folded({f"head.{key}": tensor for key, tensor in head.state_dict().items()})
    assert set(plain) == {"head.weight", "head.bias"}
    features = torch.randn(5, WIDTH, dtype=torch.float64)
    logits = features @ plain["head.weight"].double().T + plain["head.bias"].double()
    assert torch.allclose(logits, head.eval()(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changed", ["0.running_mean", "0.running_var", "1.bias"])
def test_a_batch_norm_of_another_width_is_refused(changed: str) -> None:
    head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, CLASSES))
    state = {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
    with pytest.raises(CheckpointError, match="do not fit together"):
        folded(state | {f"head.{changed}": torch.ones(WIDTH + 1)})


def test_half_a_probe_beside_a_head_is_left_alone() -> None:
    state = {"head.weight": torch.ones(CLASSES, WIDTH), "head.bias": torch.ones(CLASSES)}
    state["head.1.weight"] = torch.ones(CLASSES, WIDTH)
    assert folded(state) == state


@pytest.mark.parametrize(
    ("told", "norm", "pool"),
    [(None, "norm", "cls"), (None, "fc_norm", "mean"), ("mean", "norm", "mean"), ("cls", "fc_norm", "cls")],
)
def test_the_pooling_is_the_one_told_else_the_norms(told: str | None, norm: str, pool: str) -> None:
    file: Any = SimpleNamespace(state={f"{norm}.weight": torch.ones(WIDTH)}, extra={"maecli": {"pool": told}})
    assert pool_of(file) == pool
