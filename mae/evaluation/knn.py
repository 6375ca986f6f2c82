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
_CHUNK_NUMBERS = 2**24  # of similarities that are held at once
# Two float32 similarities nearer than this may be in either order.
_SIMILARITY_ERROR = 4e-6


class Neighbours(NamedTuple):
    """Predictions by the nearest training images.

    Attributes:
        predicted: By k, the class of each test image, (M,).
        nearest: The first few neighbours of each test image, nearest first, as rows of the training features.
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
    """Let the k most similar training images vote, each with exp(cosine similarity / temperature).

    Similarities are computed in float32, in chunks. Test images whose vote could change by rounding are decided again
    in float64. Ties go to the class with the lower number.

    Args:
        train, test: (N, D), (M, D) features; they are normalised here.
        labels: (N,) classes of the training images.
        classes: Number of classes.
        ks: Numbers of neighbours; those above N are dropped, but at least the smallest is used, as N.
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
    """The numbers of neighbours that the training images suffice for; at least one."""
    return tuple(k for k in sorted(set(ks)) if k <= images) or (images,)


def _votes(similarity: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """(B, k) similarities and labels -> (B, classes); less the highest similarity, so that nothing overflows."""
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    return torch.zeros(len(similarity), classes, dtype=weights.dtype, device=weights.device).scatter_add_(
        1, labels, weights
    )


def _decide(
    similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> tuple[dict[int, Tensor], Tensor]:
    """Predicted classes by k, and which rows are so close that rounding may have decided them."""
    decided = {}
    doubtful = torch.zeros(len(similarity), dtype=torch.bool, device=similarity.device)
    for k in ks:
        votes = _votes(similarity[:, :k], labels[:, :k], classes, temperature)
        best = votes.topk(min(2, classes), dim=1).values
        decided[k] = votes.argmax(dim=1)
        margin = best[:, 0] - best[:, -1]
        # A similarity's error changes its weight by that over the temperature, and the sums of k weights.
        error = 2 * votes.sum(dim=1) * (_SIMILARITY_ERROR / temperature + 1e-6)
        if similarity.shape[1] > k:
            # Any of those that are as far as the k-th may have its place.
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
        # Stable: of equally similar images the first one comes first.
        similarity, ids = (part[:, : max(ks)] for part in similarity.sort(dim=1, descending=True, stable=True))
        for k in ks:
            decided[k].append(_votes(similarity[:, :k], labels[ids[:, :k]], classes, temperature).argmax(dim=1))
    return {k: torch.cat(parts) for k, parts in decided.items()}


def _similarity64(queries: Tensor, train: Tensor) -> Tensor:
    """(B, N) float64, the bank in pieces: a copy of it in float64 could be gigabytes."""
    queries = F.normalize(queries.double(), dim=1)
    return torch.cat([queries @ F.normalize(part.double(), dim=1).T for part in torch.split(train, 16_384)], dim=1)
