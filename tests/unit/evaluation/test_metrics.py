"""Intervals and label-free metrics against independent formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mae.evaluation import metrics
from mae.evaluation.metrics import accuracy, alpha_req, by_class, rank_me, wilson


def test_rank_me_by_singular_values() -> None:
    """An SVD of the matrix itself instead of the eigenvalues of its square."""
    features = np.random.default_rng(0).normal(size=(300, 40)) @ np.diag(np.geomspace(1, 1e-3, 40)) + 0.3
    values = np.linalg.svd(features, compute_uv=False)
    shares = values / values.sum() + 1e-7
    assert rank_me(torch.from_numpy(features)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_rank_me_of_known_ranks() -> None:
    basis = torch.linalg.qr(torch.randn(100, 16, generator=torch.Generator().manual_seed(0)))[0]
    assert rank_me(basis) == pytest.approx(16, rel=1e-4)
    assert rank_me(torch.ones(50, 8)) == pytest.approx(1, abs=1e-3)
    assert rank_me(torch.zeros(50, 8)) == pytest.approx(1, abs=1e-3)
    assert rank_me(basis.T) == pytest.approx(16, rel=1e-4)


def test_rank_me_is_that_of_a_fixed_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_EMBEDDINGS", 10)
    features = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    assert 9 < rank_me(features) <= 10
    assert rank_me(features) == rank_me(features) != rank_me(features, seed=1)


def test_alpha_req_by_polyfit() -> None:
    features = np.random.default_rng(1).normal(size=(2000, 150)) @ np.diag(np.arange(1, 151) ** -0.6) + 2.0
    values = np.sort(np.linalg.eigvalsh(np.cov(features.T)))[::-1]
    index = np.arange(11, 101)
    slope = np.polyfit(np.log(index), np.log(values[10:100]), 1)[0]
    assert alpha_req(torch.from_numpy(features)) == pytest.approx(-slope, rel=1e-6)


def test_alpha_req_of_a_known_law() -> None:
    """Variances i^-1.5 along fixed axes."""
    basis = torch.linalg.qr(torch.randn(400, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    basis = torch.linalg.qr(basis - basis.mean(0))[0]
    features = basis * torch.arange(1, 61, dtype=torch.float64) ** -0.75
    assert alpha_req(features) == pytest.approx(1.5, rel=1e-6)
    turn = torch.linalg.qr(torch.randn(60, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    assert alpha_req(features[:, :30] @ turn.T) == pytest.approx(1.5, rel=1e-6)  # of rank 30 in 60 dimensions
    assert alpha_req(features[:, :3]) == pytest.approx(1.5, rel=1e-6)
    assert alpha_req(features[:, :2]) is None
    assert alpha_req(torch.ones(10, 4)) is None


def test_wilson_by_the_textbook() -> None:
    """The bounds solve (p - share)^2 = z^2 p (1 - p) / n."""
    for right, total in ((604, 1000), (0, 20), (20, 20), (1, 3)):
        share, z = right / total, 1.959963984540054
        for end in wilson(right, total):
            assert (end - share) ** 2 == pytest.approx(z * z * end * (1 - end) / total, abs=1e-12)
    assert wilson(0, 20)[0] == 0
    found = accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    assert found.value == 0.75
    assert found.low < 0.75 < found.high


def test_classes_are_counted_and_a_matrix_of_very_many_is_left_out() -> None:
    """Of 21,841 classes it had 477 million numbers, and the test at a run's end failed for lack of memory."""
    truth, predicted = np.array([2, 0, 2]), np.array([2, 1, 1])
    accuracies, confusion = by_class(predicted, truth, ("a", "b", "c"))
    assert [(one.name, one.test_images, one.test.value) for one in accuracies] == [("a", 1, 0.0), ("c", 2, 0.5)]
    assert confusion == ((0, 1, 0), (0, 0, 0), (0, 1, 1))
    many, confusion = by_class(predicted, truth, [str(number) for number in range(21_841)])
    assert [(one.name, one.test_images) for one in many] == [("0", 1), ("2", 2)]
    assert confusion == ()
