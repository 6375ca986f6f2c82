"""The linear probe equals scikit-learn's tuned logistic regression, and is not tuned on test images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation import linear as module
from mae.evaluation.linear import PENALTIES, linear, tenths


def noisy(count: int, width: int = 24, classes: int = 4) -> tuple[Tensor, NDArray[np.int64]]:
    """Correlated features of very different scales; the classes overlap."""
    stream = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=stream) * torch.logspace(0, -2, width)
    features = torch.randn(count, width, generator=stream) @ mixing
    scores = features @ torch.randn(width, classes, generator=stream)
    scores = scores / scores.std() + 0.5 * torch.randn(count, classes, generator=stream)
    return features * torch.logspace(-1, 2, width) + 5, scores.argmax(1).numpy()


def digits() -> tuple[Tensor, NDArray[np.int64]]:
    """1,797 real handwritten digits of 8 x 8 pixels, shuffled."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return torch.from_numpy(found.data[order]).float(), found.target[order]


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
def test_the_minimum_is_scikit_learns(penalty: float) -> None:
    """With a single penalty, the same convex problem has the same solution."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = noisy(1500)
    train, test = features[:900], features[900:]
    found = linear(train, labels[:900], test, 4, penalties=(penalty,))
    scaler = StandardScaler().fit(train.double().numpy())
    wanted = LogisticRegression(C=1 / (penalty * 900), max_iter=5000, tol=1e-8)
    wanted.fit(scaler.transform(train.double().numpy()), labels[:900])
    assert (found.predicted == wanted.predict(scaler.transform(test.double().numpy()))).mean() >= 0.998


@pytest.mark.filterwarnings("ignore:.*converge.*")
@pytest.mark.parametrize("data", ["synthetic", "digits"])
def test_within_three_tenths_of_a_point_of_the_tuned_one(data: str) -> None:
    """scikit-learn tunes its penalty by cross-validation over the same grid."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler

    features, labels = noisy(3000) if data == "synthetic" else digits()
    half, classes = len(labels) // 2, int(labels.max()) + 1
    found = linear(features[:half], labels[:half], features[half:], classes)
    scaler = StandardScaler().fit(features[:half].numpy())
    grid = {"C": [1 / (penalty * half) for penalty in PENALTIES[2::2]]}
    tuned = GridSearchCV(LogisticRegression(max_iter=500), grid, cv=3)
    tuned.fit(scaler.transform(features[:half].numpy()), labels[:half])
    theirs = tuned.score(scaler.transform(features[half:].numpy()), labels[half:])
    assert (found.predicted == labels[half:]).mean() >= theirs - 0.003


def test_the_test_images_choose_nothing() -> None:
    """Additional test images change neither the penalty nor the predictions of the others."""
    features, labels = noisy(800)
    one = linear(features[:500], labels[:500], features[500:600], 4)
    other = linear(features[:500], labels[:500], torch.cat([features[500:600], 100 * features[600:]]), 4)
    assert (one.penalty, one.held_out) == (other.penalty, other.held_out)
    assert np.array_equal(one.predicted, other.predicted[:100])


def test_the_tenths_are_stratified_and_disjoint() -> None:
    labels = np.array([0] * 40 + [1] * 20 + [2] * 3 + [3])
    parts = tenths(labels, 0)
    assert not (np.sum(parts, axis=0) > 1).any()
    assert (labels[parts[0]] == 0).sum() == 4
    assert (labels[parts[0]] == 1).sum() == 2
    assert not any(part[-1] for part in parts)  # the only image of a class is always a training image
    assert len(parts) == 10
    assert len(tenths(np.arange(5), 0)) == 0
    large = tenths(np.repeat(np.arange(4), 5000), 0)
    assert [int(part.sum()) for part in large] == [2000]


def test_a_penalty_is_chosen_by_smoothed_accuracies_of_all_held_out_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by the loss between equal ones. The features here name the image, so a weight answers for one image."""
    labels, truth = np.arange(40) % 2, torch.arange(40) % 2

    def choose(right: list[int], margins: list[float]) -> tuple[float, float | None]:
        """The choice between penalties whose logits differ by a margin, in favour of the true class ``right`` times."""
        penalties = [float(number) for number in range(len(right))]
        signs = [torch.where(torch.arange(40) < count, 1.0, -1.0) for count in right]
        sides = [margin * sign for margin, sign in zip(margins, signs, strict=True)]
        answers = [(torch.stack([side * (1 - truth), side * truth], dim=1)[None], torch.zeros(1, 2)) for side in sides]
        monkeypatch.setattr(module, "_solve_all", lambda *_: answers)
        best, _, held_out = module._choose(torch.eye(40), truth, labels, 2, 0, penalties, torch.ones(40))
        return best, held_out

    assert choose([30, 28, 10, 32, 10], [1.0] * 5) == (0.0, 0.75)
    assert choose([20, 20, 20], [1.0, 0.5, 2.0]) == (1.0, 0.5)
    assert pytest.approx([10 ** (-5 + number / 2) for number in range(11)]) == PENALTIES


def test_noise_is_not_told_apart() -> None:
    stream = torch.Generator().manual_seed(3)
    labels = np.arange(400) % 4
    found = linear(torch.randn(400, 16, generator=stream), labels, torch.randn(400, 16, generator=stream), 4)
    assert 0.15 < (found.predicted == labels).mean() < 0.36
    assert found.held_out is not None
    assert found.held_out < 0.4


def test_constant_features_and_more_features_than_images() -> None:
    """Directions without variance are left out, to avoid a division by zero."""
    features, labels = noisy(40)
    wide = torch.cat([features, torch.full((40, 5), 7.0), features.repeat(1, 3)], dim=1)
    found = linear(wide[:20], labels[:20], wide[20:], 4)
    assert found.predicted.shape == (20,)
    assert np.isfinite(found.penalty)
    same = linear(torch.ones(40, 5), labels, torch.ones(3, 5), 4)  # of images that are all equal
    assert (same.predicted == np.bincount(labels).argmax()).all()


def test_logits_of_all_test_images_are_never_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For 50,000 images of 20,000 classes they took 4 GB, beside two copies of them."""
    features, labels = noisy(120)
    monkeypatch.setattr(module, "MOST_STEPS", 5)
    whole = linear(features[:40], labels[:40], features[40:], 4, penalties=[0.1])
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 100)
    argmax, sizes = torch.Tensor.argmax, []

    def counted(logits: torch.Tensor, dim: int) -> torch.Tensor:
        sizes.append(logits.numel())
        return argmax(logits, dim=dim)

    monkeypatch.setattr(torch.Tensor, "argmax", counted)
    pieces = linear(features[:40], labels[:40], features[40:], 4, penalties=[0.1])
    assert max(sizes) <= 100
    assert np.array_equal(whole.predicted, pieces.predicted)


def test_chunks_and_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = noisy(700)
    whole = linear(features[:500], labels[:500], features[500:], 4)
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 3000)
    monkeypatch.setattr(module, "_MOST_WEIGHTS", 300)
    pieces = linear(features[:500], labels[:500], features[500:], 4)
    assert whole.penalty == pieces.penalty
    assert (whole.predicted == pieces.predicted).mean() > 0.99
