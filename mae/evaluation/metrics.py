"""Confidence intervals of accuracies, and two label-free metrics of features."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.results import Accuracy
from mae.system.seeding import stream

Z_95 = 1.959963984540054  # standard normal quantile of 97.5 %
MOST_EMBEDDINGS = 25_600  # as RankMe's authors take
RANK_ME_EPS = 1e-7
FIRST_EIGENVALUE, LAST_EIGENVALUE = 11, 100  # of the fit, counted from 1


def accuracy(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> Accuracy:
    """Accuracy with its interval, from predicted and true classes, (M,) each."""
    right, total = int((predicted == truth).sum()), len(truth)
    low, high = wilson(right, total)
    return Accuracy(right / total, low, high)


def wilson(right: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion."""
    share, weight = right / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def rank_me(features: Tensor, *, seed: int = 0) -> float:
    """How many directions features use (RankMe, Garrido et al. 2023): exp of the entropy of the singular values.

    ``exp(-sum p ln p)`` with ``p = sigma / sum(sigma) + 1e-7``, of at most 25,600 rows that are not centred.

    Args:
        features: (N, D).
        seed: Seed of the choice of rows, if there are more.

    Returns:
        Between 1 and the smaller of N and D.
    """
    values = _eigenvalues(_at_most(features, seed), centred=False).sqrt()
    shares = values / values.sum() + RANK_ME_EPS
    return float((-(shares * shares.log()).sum()).exp())


def alpha_req(features: Tensor, *, seed: int = 0) -> float | None:
    """How fast the eigenvalues of the features' covariance fall (alpha-ReQ, Agrawal et al. 2022); near 1 is good.

    The negative slope of a straight line through (ln i, ln lambda_i), by least squares over i = 11 ... 100, or fewer
    where there are fewer; over all of them for features with less than 22 dimensions.

    Returns:
        None where fewer than three eigenvalues are positive.
    """
    values = _eigenvalues(_at_most(features, seed), centred=True).flip(0)
    values = values[values > values[0] * 1e-12]
    first = FIRST_EIGENVALUE if len(values) >= 2 * FIRST_EIGENVALUE else 1
    chosen = values[first - 1 : LAST_EIGENVALUE]
    if len(chosen) < 3:
        return None
    x = torch.arange(first, first + len(chosen), dtype=torch.float64).log()
    y = chosen.log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x * y).sum() / (x * x).sum())


def _at_most(features: Tensor, seed: int) -> Tensor:
    if len(features) > MOST_EMBEDDINGS:
        features = features[torch.randperm(len(features), generator=stream(seed, "rank"))[:MOST_EMBEDDINGS]]
    return features


def _eigenvalues(features: Tensor, *, centred: bool) -> Tensor:
    """Eigenvalues of X^T X (or the covariance), ascending, float64, non-negative; min(N, D) of them."""
    exact = features.double()
    if centred:
        exact = (exact - exact.mean(dim=0)) / math.sqrt(max(1, len(exact) - 1))
    small = exact.T @ exact if exact.shape[0] >= exact.shape[1] else exact @ exact.T
    values: Tensor = torch.linalg.eigvalsh(small)
    return values.clamp_min(0)
