"""Confidence intervals of accuracies, and two label-free metrics of features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.results import Accuracy, ClassAccuracy
from mae.evaluation.splits import by_label
from mae.system.seeding import stream

Z_95 = 1.959963984540054  # standard normal quantile of 97.5 %
MOST_IN_MATRIX = 1_000  # classes of the confusion matrix
MOST_EMBEDDINGS = 25_600  # the number of embeddings that RankMe's authors use
RANK_ME_EPS = 1e-7
FIRST_EIGENVALUE, LAST_EIGENVALUE = 11, 100  # range of the fit, counted from 1


def accuracy(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> Accuracy:
    """Accuracy with its 95 % confidence interval, from predicted and true classes, (M,) each."""
    right, total = int((predicted == truth).sum()), len(truth)
    low, high = wilson(right, total)
    return Accuracy(right / total, low, high)


def by_class(
    predicted: NDArray[np.int64], truth: NDArray[np.int64], classes: Sequence[str]
) -> tuple[tuple[ClassAccuracy, ...], tuple[tuple[int, ...], ...]]:
    """Accuracy of each class that has images, and the number of images by [true class][predicted class].

    The matrix of more than ``MOST_IN_MATRIX`` classes is left out: that of 20,000 would take tens of gigabytes.
    """
    accuracies = []
    for own in by_label(truth):
        number = int(truth[own[0]])
        accuracies.append(ClassAccuracy(classes[number], len(own), accuracy(predicted[own], truth[own])))
    if len(classes) > MOST_IN_MATRIX:
        return tuple(accuracies), ()
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return tuple(accuracies), tuple(map(tuple, confusion.tolist()))


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of the proportion ``right / total``, with 95 % confidence."""
    z = Z_95
    share, weight = right / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def rank_me(features: Tensor, *, seed: int = 0) -> float:
    """RankMe (Garrido et al. 2023), the effective rank of features: exp of the entropy of their singular values.

    ``exp(-sum p ln p)`` with ``p = sigma / sum(sigma) + 1e-7``, of at most 25,600 rows, not centred.

    Args:
        features: Features, (N, D).
        seed: Seed of the choice of rows, if there are more than 25,600.

    Returns:
        A value between 1 and min(N, D).
    """
    values = _eigenvalues(_at_most(features, seed), centred=False).sqrt()
    shares = values / values.sum().clamp_min(1e-30) + RANK_ME_EPS  # features may all be 0
    return float((-(shares * shares.log()).sum()).exp())


def alpha_req(features: Tensor, *, seed: int = 0) -> float | None:
    """alpha-ReQ (Agrawal et al. 2022), the decay of the eigenvalues of the features' covariance; near 1 is good.

    The negative slope of the least-squares line through (ln i, ln lambda_i) for i = 11 ... 100, or up to the last
    eigenvalue if there are fewer; for features with fewer than 22 dimensions over all eigenvalues.

    Returns:
        The negative slope; None if fewer than three eigenvalues are positive.
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
