"""Multinomial logistic regression, solved for a grid of L2 penalties at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.splits import by_label, stratified
from mae.system.seeding import stream

PENALTIES = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 1))  # 1e-5 ... 1, of the mean loss
TENTHS = 10
ENOUGH_IN_A_TENTH = 1_000  # images; if a tenth has fewer, several tenths are held out one after the other
ENOUGH_TO_CHOOSE = 2_000  # held-out images over all tenths
MOST_TO_CHOOSE_BY = 50_000  # images; more are not needed to choose a penalty
MOST_STEPS = 100
GRADIENT_TOLERANCE = 1e-5  # largest absolute component of the gradient of the mean loss
# Stop after a step that reduces the loss by less than this fraction: in choosing a penalty, and in the final fit.
TO_CHOOSE, TO_ANSWER = 1e-5, 1e-6
_HISTORY = 10
_CHUNK_NUMBERS = 2**23  # largest number of logits in memory at once
_MOST_WEIGHTS = 2**22  # largest number of weights of the problems that are solved at once
_SMALL_LOSS = 0.05  # below this loss, further steps do not change predictions
_CURVATURE = 0.5  # the softmax's Hessian is at most half of the features' covariance (Boehning 1992)


@dataclasses.dataclass(frozen=True)
class LinearResult:
    """A linear classifier and how it was chosen.

    Attributes:
        predicted: Classes of the test images, (M,).
        penalty: L2 penalty lambda of the mean loss, lambda / 2 |W|^2; scikit-learn's C is 1 / (lambda N).
        held_out: Accuracy on the training images held out to choose the penalty; None if there were too few.
    """

    predicted: NDArray[np.int64]
    penalty: float
    held_out: float | None


def linear(
    train: Tensor,
    labels: NDArray[np.int64],
    test: Tensor,
    classes: int,
    *,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> LinearResult:
    """Choose a penalty on held-out training images, fit again on all of them, and predict the test images.

    Features are standardised with mean and std of the training images.

    Args:
        train, test: (N, D), (M, D) features.
        labels: (N,) classes of the training images.
        classes: Number of classes.
        seed: Seed of the held-out images.
        penalties: Penalties to choose from.
    """
    mean = train.mean(dim=0)
    scale = train.std(dim=0, correction=0).clamp_min(1e-6 * float(train.abs().max()) + 1e-12)
    axes, spectrum = _principal_axes((train - mean) / scale)
    features = (train - mean) / scale @ axes
    truth = torch.from_numpy(labels).to(train.device)
    best, shown, held_out = _choose(features, truth, labels, classes, seed, penalties, spectrum)
    weight, bias = solve(features, truth, classes, [best], spectrum, start=shown)
    predicted = [
        ((part - mean) / scale @ axes @ weight[0] + bias[0]).argmax(dim=1)
        for part in torch.split(test, max(1, _CHUNK_NUMBERS // classes))
    ]
    return LinearResult(torch.cat(predicted).cpu().numpy(), best, held_out)


def tenths(labels: NDArray[np.int64], seed: int) -> list[NDArray[np.bool_]]:
    """Masks of held-out training images, (N,) each, with about a tenth of every class; [] if every class has one image.

    One mask if a tenth is enough images, else several disjoint ones, whose predictions are counted together.
    """
    place = np.zeros(len(labels), dtype=np.int64)  # number of each image's tenth
    for own in by_label(labels):
        order = torch.randperm(len(own), generator=stream(seed, "held out", int(labels[own[0]]))).numpy()
        # A class with fewer images than tenths has one image in each of the first tenths.
        place[own[order]] = np.arange(len(own)) % TENTHS if len(own) > 1 else -1
    parts = []
    for tenth in range(TENTHS):
        held = place == tenth
        if held.any() and set(np.unique(labels[held])) <= set(np.unique(labels[~held])):
            parts.append(held)
        enough = ENOUGH_IN_A_TENTH if len(parts) == 1 else ENOUGH_TO_CHOOSE
        if sum(int(part.sum()) for part in parts) >= enough:
            break
    return parts


def _choose(
    features: Tensor,
    truth: Tensor,
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    penalties: Sequence[float],
    spectrum: Tensor,
) -> tuple[float, tuple[Tensor, Tensor] | None, float | None]:
    """The chosen penalty, its weights, and its held-out accuracy."""
    chosen = np.arange(len(labels))
    if len(labels) > MOST_TO_CHOOSE_BY:
        chosen = stratified(labels, MOST_TO_CHOOSE_BY / len(labels), seed, "choosing")
    parts = tenths(labels[chosen], seed)
    if not parts:
        return sorted(penalties)[len(penalties) // 2], None, None
    right, loss = np.zeros(len(penalties)), np.zeros(len(penalties))
    found: list[tuple[Tensor, Tensor]] = []
    for held in parts:
        kept, asked = (torch.from_numpy(chosen[part]).to(features.device) for part in (~held, held))
        found = _solve_all(features[kept], truth[kept], classes, penalties, spectrum)
        for number, (weight, bias) in enumerate(found):
            logits = features[asked] @ weight[0] + bias[0]
            right[number] += int((logits.argmax(dim=1) == truth[asked]).sum())
            loss[number] += float(F.cross_entropy(logits, truth[asked], reduction="sum"))
    images = sum(int(part.sum()) for part in parts)
    # Smooth the accuracy over the grid of penalties, which is noisy with few images: neighbours have half the weight.
    padded = np.pad(right, 1, mode="edge")
    smooth = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    best = max(range(len(penalties)), key=lambda number: (smooth[number], -loss[number]))
    return penalties[best], found[best], float(right[best]) / images


def _solve_all(
    features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float], spectrum: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Call ``solve`` for as many penalties at a time as fit into memory; weights (1, R, K) and biases (1, K) of each.

    Starts at zero: a solution for another held-out part was fitted on this part's images, which would leak.
    """
    size = max(1, _MOST_WEIGHTS // (features.shape[1] * classes))
    found = []
    for begin in range(0, len(penalties), size):
        some = penalties[begin : begin + size]
        weights, biases = solve(features, labels, classes, some, spectrum, least_gain=TO_CHOOSE)
        found += list(zip(torch.split(weights, 1), torch.split(biases, 1), strict=True))
    return found


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """The principal axes with non-zero variance (all, if none has), (D, R), and the mean squares along them, (R,).

    Their rotation keeps the L2 penalty and makes the curvature nearly diagonal.
    """
    values, axes = torch.linalg.eigh((features.T @ features).double() / len(features))
    there = values >= values[-1] * 1e-9
    return axes[:, there].to(features.dtype), values[there].to(features.dtype)


def solve(
    features: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    spectrum: Tensor,
    start: tuple[Tensor, Tensor] | None = None,
    least_gain: float = TO_ANSWER,
) -> tuple[Tensor, Tensor]:
    """Minimise mean cross-entropy + penalty / 2 * |W|^2 for G penalties at once by L-BFGS.

    One product with the features serves all problems; each has its own history and step size. The initial inverse
    Hessian is 1 / (spectrum / 2 + penalty).

    Args:
        features: Features along their principal axes, (N, R).
        labels: Classes, (N,).
        classes: K, number of classes.
        penalties: The G penalties.
        spectrum: Mean squares of the columns of ``features``, (R,).
        start: Initial weights (G, R, K) and biases (G, K); zeros if None.
        least_gain: Stop when a step reduces the loss by less than this fraction.

    Returns:
        Weights (G, R, K) and biases (G, K).
    """
    problem = _Problem(features, labels, classes, penalties)
    x = torch.zeros(len(penalties), features.shape[1] + 1, classes, dtype=features.dtype, device=features.device)
    if start is not None:
        x[:, :-1], x[:, -1] = start
    found = x.clone()
    place = torch.arange(len(penalties), device=x.device)  # numbers of the problems that are not solved yet
    inverse = torch.ones_like(x)
    inverse[:, :-1] = 1 / (_CURVATURE * spectrum[None, :, None] + problem.penalties[:, None, None])
    inverse[:, -1] = 1 / _CURVATURE
    value, gradient = problem(x)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(MOST_STEPS):
        direction = _direction(gradient, history, inverse)
        uphill = _dot(direction, gradient) >= 0
        direction = torch.where(uphill[:, None, None], -inverse * gradient, direction)
        moved, new_value, new_gradient = _search(problem, x, value, gradient, direction)
        step, change = moved - x, new_gradient - gradient
        curvature = _dot(step, change)
        # A history pair without positive curvature gets weight 0.
        use = curvature > 1e-10 * _dot(change, change)
        history = [*history[-_HISTORY + 1 :], (step, change, torch.where(use, 1 / curvature.clamp_min(1e-30), 0.0))]
        fallen = value - new_value
        x, value, gradient = moved, new_value, new_gradient
        found[place] = x
        going = (fallen > least_gain * value.clamp_min(_SMALL_LOSS)) & (
            gradient.abs().amax(dim=(1, 2)) > GRADIENT_TOLERANCE
        )
        if not going.any():
            break
        if not going.all():
            problem = problem.only(going)
            place, x, value, gradient, inverse = (one[going] for one in (place, x, value, gradient, inverse))
            history = [(step[going], change[going], weight[going]) for step, change, weight in history]
    return found[:, :-1], found[:, -1]


class _Problem:
    """The objective of all problems and its gradient, computed in chunks of rows."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, penalties: Sequence[float] | Tensor) -> None:
        self.features = features
        self.labels = labels
        self.classes = classes
        self.penalties = torch.as_tensor(penalties, dtype=features.dtype, device=features.device)

    def only(self, these: Tensor) -> _Problem:
        """A subset of the problems."""
        return _Problem(self.features, self.labels, self.classes, self.penalties[these])

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases (G, R + 1, K) -> values (G,), gradients (G, R + 1, K)."""
        problems, rows, classes = x.shape
        weight = x[:, :-1].permute(1, 0, 2).reshape(rows - 1, -1)  # (R, G * K)
        bias = x[:, -1].reshape(-1)
        total = torch.zeros(problems, dtype=torch.float64, device=x.device)
        gradient = torch.zeros_like(weight)
        bias_gradient = torch.zeros_like(bias)
        size = max(1, _CHUNK_NUMBERS // (problems * classes))
        for part, truth in zip(torch.split(self.features, size), torch.split(self.labels, size), strict=True):
            logits = torch.addmm(bias, part, weight).view(len(part), problems, classes)  # (n, G, K)
            index = truth[:, None, None].expand(-1, problems, 1)
            logits -= logits.amax(dim=2, keepdim=True)
            true_logits = logits.gather(2, index)[..., 0]
            logits.exp_()
            sums = logits.sum(dim=2, keepdim=True)
            total += (sums[..., 0].log() - true_logits).sum(dim=0, dtype=torch.float64)
            logits /= sums
            logits.scatter_add_(2, index, logits.new_full((1, 1, 1), -1.0).expand(len(part), problems, 1))
            flat = logits.view(len(part), -1)
            gradient.addmm_(part.T, flat)
            bias_gradient += flat.sum(dim=0)
        count = len(self.features)
        own = x[:, :-1]
        value = total / count + 0.5 * self.penalties.double() * own.double().square().sum(dim=(1, 2))
        out = torch.empty_like(x)
        out[:, :-1] = gradient.view(rows - 1, problems, classes).permute(1, 0, 2) / count
        out[:, :-1] += self.penalties[:, None, None] * own
        out[:, -1] = bias_gradient.view(problems, classes) / count
        return value, out


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2))


def _direction(gradient: Tensor, history: Sequence[tuple[Tensor, Tensor, Tensor]], inverse: Tensor) -> Tensor:
    """The two-loop recursion of L-BFGS for all problems at once."""
    out = gradient.clone()
    alphas = []
    for step, change, weight in reversed(history):
        alpha = weight * _dot(step, out)
        out -= alpha[:, None, None] * change
        alphas.append(alpha)
    out *= inverse
    for (step, change, weight), alpha in zip(history, reversed(alphas), strict=True):
        out += (alpha - weight * _dot(change, out))[:, None, None] * step
    return -out


def _search(
    problem: _Problem, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Backtracking line search: halve the step until the Armijo condition holds; if it never does, do not move."""
    slope = _dot(direction, gradient)
    size = torch.ones_like(slope)
    best_x, best_value, best_gradient = x, value, gradient
    open_ = torch.ones_like(slope, dtype=torch.bool)
    for _ in range(12):
        tried = x + size[:, None, None] * direction
        new_value, new_gradient = problem(tried)
        # Allow for rounding of float32, by which a value may seem to increase.
        good = open_ & (new_value <= value + 1e-4 * (size * slope).double() + 2e-7 * value.abs())
        pick = good[:, None, None]
        best_x, best_gradient = torch.where(pick, tried, best_x), torch.where(pick, new_gradient, best_gradient)
        best_value = torch.where(good, new_value, best_value)
        open_ = open_ & ~good
        if not open_.any():
            break
        size = torch.where(open_, size / 2, size)
    return best_x, best_value, best_gradient
