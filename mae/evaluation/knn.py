"""Weighted k-nearest neighbours (Wu et al. 2018, as in DINO), independent of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07
_CHUNK_NUMBERS = 2**24  # largest number of similarities in memory at once
# Upper bound of the rounding error of a float32 similarity.
_SIMILARITY_ERROR = 4e-6


class Neighbours(NamedTuple):
    """Predictions by the nearest training images.

    Attributes:
        predicted: Classes of the test images, (M,), by k.
        nearest: Indices of the nearest training images of each test image, (M, strip), nearest first.
    """

    predicted: dict[int, NDArray[np.int64]]
    nearest: NDArray[np.int64]


def knn(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    strip: int = 5,
) -> Neighbours:
    """Classify by a vote of the k most similar training images, each weighted by exp(cosine similarity / temperature).

    Similarities are computed in float32, in chunks. Test images whose vote could change by rounding are decided again
    in float64. Ties go to the class with the lower number.

    Args:
        train, test: Features, (N, D) and (M, D), of any norm.
        labels: Classes of the training images, (N,).
        classes: Number of classes.
        ks: Numbers of neighbours; those above N are dropped. If all are, N is used.
        temperature: Temperature of the weights.
        strip: Number of neighbours to return for each test image.
    """
    ks = usable_ks(ks, len(train))
    train = F.normalize(train.float(), dim=1)
    predicted: dict[int, list[Tensor]] = {k: [] for k in ks}
    nearest = []
    for chunk in torch.split(test, max(1, _CHUNK_NUMBERS // len(train))):
        queries = F.normalize(chunk.float(), dim=1)
        similarity, ids = (queries @ train.T).topk(min(max(*ks, strip) + 1, len(train)), dim=1)
        nearest.append(ids[:, :strip])
        votes, doubtful = _decide(similarity, labels[ids], classes, ks, temperature)
        again = doubtful.nonzero()[:, 0]
        if len(again):
            for k, exact in _exactly(train, labels, queries[again], classes, ks, temperature).items():
                votes[k][again] = exact
        for k in ks:
            predicted[k].append(votes[k])
    return Neighbours(
        {k: torch.cat(parts).cpu().numpy() for k, parts in predicted.items()}, torch.cat(nearest).cpu().numpy()
    )


def usable_ks(ks: Sequence[int], images: int) -> tuple[int, ...]:
    """The numbers of neighbours that are not above the number of training images, else that number."""
    return tuple(k for k in sorted(set(ks)) if k <= images) or (images,)


def _votes(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Similarities and labels, (B, k) -> votes (B, classes); the highest similarity is subtracted against overflow."""
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(similarity), classes, dtype=weights.dtype, device=weights.device).scatter_add_(
        1, labels, weights
    )


def _decide(
    similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> tuple[dict[int, Tensor], Tensor]:
    """Predicted classes by k, and a mask of the rows whose vote is so close that rounding may have decided it."""
    decided = {}
    doubtful = torch.zeros(len(similarity), dtype=torch.bool, device=similarity.device)
    for k in ks:
        votes = _votes(similarity[:, :k], labels[:, :k], classes, temperature)
        best = votes.topk(min(2, classes), dim=1).values
        decided[k] = votes.argmax(dim=1)
        margin = best[:, 0] - best[:, -1]
        # An error e of a similarity changes its weight, and so a class's sum, by a factor of about 1 + e / temperature.
        error = 2 * votes.sum(dim=1) * (_SIMILARITY_ERROR / temperature + 1e-6)
        if similarity.shape[1] > k:
            # Neighbours about as similar as the k-th may be exchanged with it.
            last = similarity[:, k - 1 : k]
            tied = (similarity - last).abs() < _SIMILARITY_ERROR
            weight = ((last[:, 0] - similarity[:, 0]) / temperature).exp()
            error = error + 2 * weight * tied.sum(dim=1) * (similarity[:, k] > last[:, 0] - _SIMILARITY_ERROR)
        doubtful |= margin <= error
    return decided, doubtful


def _exactly(
    train: Tensor, labels: Tensor, queries: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> dict[int, Tensor]:
    decided: dict[int, list[Tensor]] = {k: [] for k in ks}
    for chunk in torch.split(queries, 64):
        similarity = _similarity64(chunk, train)
        # Stable sort: equally similar images stay in their order.
        similarity, ids = (part[:, : max(ks)] for part in similarity.sort(dim=1, descending=True, stable=True))
        for k in ks:
            decided[k].append(_votes(similarity[:, :k], labels[ids[:, :k]], classes, temperature).argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in decided.items()}


def _similarity64(queries: Tensor, train: Tensor) -> Tensor:
    """Similarities (B, N) in float64, computed in pieces, since a float64 copy of ``train`` could take gigabytes."""
    queries = F.normalize(queries.double(), dim=1)
    return torch.cat([queries @ F.normalize(part.double(), dim=1).T for part in torch.split(train, 16_384)], dim=1)
