"""The pixel baselines."""

from __future__ import annotations

import torch

from mae.evaluation.baselines import whiten


def test_whitened_components_have_unit_variance() -> None:
    train = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(6.0))
    white, _ = whiten(train, train[:3], 8)
    assert white.shape == (64, 5)  # the first column is 0
    assert torch.allclose(white.T @ white / 64, torch.eye(5), atol=1e-4)


def test_images_that_are_all_equal() -> None:
    train, test = whiten(torch.ones(16, 6), torch.full((3, 6), 2.0), 4)
    assert train.shape == (16, 4)
    assert not train.any()
    assert test.isfinite().all()
