"""k-NN gives the same predictions as scikit-learn in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation import knn as module
from mae.evaluation.knn import NEIGHBOURS, knn, usable_ks


def clouds(seed: int, count: int, classes: int = 7, width: int = 12) -> tuple[Tensor, Tensor]:
    """Overlapping classes with a large common mean, like features of an encoder."""
    stream = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=stream)
    return centres[labels] + 1.5 * torch.randn(count, width, generator=stream) + 10, labels


def plain(train: Tensor, labels: Tensor, test: Tensor, k: int) -> NDArray[np.int64]:
    """scikit-learn in float64, weights exp(cosine similarity / T)."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    classifier.fit(train.double().numpy(), labels.numpy())
    answers: NDArray[np.int64] = classifier.predict(test.double().numpy())
    return answers


@pytest.mark.parametrize("seed", range(3))
def test_every_decision_is_scikit_learns(seed: int) -> None:
    (train, labels), (test, _) = clouds(seed, 900), clouds(seed + 50, 400)
    found = knn(train, labels, test, 7)
    assert tuple(found.predicted) == NEIGHBOURS
    for k in NEIGHBOURS:
        assert np.array_equal(found.predicted[k], plain(train, labels, test, k))


def test_close_votes_are_decided_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large common mean, float32 has few digits for differences: without the float64 pass, some votes differ."""
    (train, labels), (test, _) = clouds(0, 900), clouds(1, 600)
    train, test = train + 300, test + 300
    wanted = {k: plain(train, labels, test, k) for k in NEIGHBOURS}
    found = knn(train, labels, test, 7).predicted
    assert all(np.array_equal(found[k], wanted[k]) for k in NEIGHBOURS)
    monkeypatch.setattr(module, "_SIMILARITY_ERROR", -1.0)
    careless = knn(train, labels, test, 7).predicted
    assert any(not np.array_equal(careless[k], wanted[k]) for k in NEIGHBOURS)


@pytest.mark.parametrize(("ks", "mean"), [((1, 3, 10, 20), 100), ((5,), 100), ((900,), 1000)])
def test_a_close_vote_is_exact_for_each_k_whatever_the_others_are(ks: tuple[int, ...], mean: float) -> None:
    """Several small ones, one alone, and all images, as many of each class."""
    (train, labels), (test, _) = clouds(0, 900), clouds(1, 600)
    if ks == (900,):
        labels, test = torch.arange(900) % 6, test[:100]
    found = knn(train + mean, labels, test + mean, 7, ks=ks).predicted
    assert all(np.array_equal(found[k], plain(train + mean, labels, test + mean, k)) for k in ks)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (train, labels), (test, _) = clouds(0, 300), clouds(1, 100)
    whole = knn(train, labels, test, 7)
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 2000)
    pieces = knn(train, labels, test, 7)
    assert np.array_equal(whole.nearest, pieces.nearest)
    assert all(np.array_equal(whole.predicted[k], pieces.predicted[k]) for k in whole.predicted)


def test_nearer_neighbours_weigh_more() -> None:
    """One neighbour at distance 0 outvotes two further away; by hand e^0 > 2 e^(-0.2 / 0.07)."""
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    found = knn(train, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), 2, ks=(3,))
    assert found.predicted[3].tolist() == [0]
    assert found.nearest[0, 0] == 0
    cold = knn(train, torch.tensor([0, 1, 0]), torch.tensor([[0.8, 0.6]]), 2, ks=(3,), temperature=1e-3)
    assert cold.predicted[3].tolist() == [1]  # of weights such as e^1000 and e^800
    far = torch.tensor([[0.99, 0.141], [0.8, 0.6], [0.8, -0.6]])
    assert knn(far, torch.tensor([0, 1, 1]), torch.tensor([[0.8, 0.6]]), 2, ks=(3,)).predicted[3].tolist() == [1]


def test_equal_votes_go_to_the_lower_class() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert knn(train, torch.tensor([1, 0]), torch.tensor([[1.0, 0.0]]), 2, ks=(2,)).predicted[2].tolist() == [0]


def test_few_training_images() -> None:
    assert usable_ks(NEIGHBOURS, 50) == (10, 20)
    assert usable_ks(NEIGHBOURS, 6) == (6,)
    assert usable_ks(NEIGHBOURS, 20) == (10, 20)
