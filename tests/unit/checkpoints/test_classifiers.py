"""Heads in checkpoint files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mae.checkpoints.classifiers import folded
from mae.models.classifier import BATCH_NORM_EPS

WIDTH, CLASSES = 6, 3


@pytest.mark.parametrize("affine", [False, True])
def test_the_batch_norm_of_a_probe_is_folded_into_its_linear_layer(affine: bool) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm1d(WIDTH, affine=affine, eps=BATCH_NORM_EPS), nn.Linear(WIDTH, CLASSES)).double()
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    plain = folded({f"head.{key}": tensor for key, tensor in head.state_dict().items()})
    assert set(plain) == {"head.weight", "head.bias"}
    features = torch.randn(5, WIDTH, dtype=torch.float64)
    logits = features @ plain["head.weight"].double().T + plain["head.bias"].double()
    assert torch.allclose(logits, head.eval()(features), rtol=1e-5, atol=1e-5)
