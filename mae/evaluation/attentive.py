"""Efficient Probing (Psomas et al. 2026): learned queries attend to the patch tokens, and a linear
layer predicts the class.

Heads with different learning rates and weight decays are trained together on the same batches; the one with the best
accuracy on held-out training images predicts the test images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.linear import tenths
from mae.system.seeding import stream

QUERIES = 32
LEARNING_RATES = (5e-3, 2e-2)
WEIGHT_DECAYS = (0.1,)
BATCH = 256
IMAGES_SEEN = 75_000  # training images over all epochs
FEWEST_EPOCHS, MOST_EPOCHS = 6, 100
WARMUP = 0.1  # fraction of the steps
_BETAS, _ADAM_EPS, _BN_EPS = (0.9, 0.999), 1e-8, 1e-6


class Tokens(Protocol):
    """Patch tokens of some images, which may be read from the disk."""

    def __len__(self) -> int:
        """Number of images."""

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Patch tokens of the images with these indices, (B, L, D), of any float type."""


@dataclasses.dataclass(frozen=True)
class AttentiveResult:
    """An attentive classifier and how it was chosen.

    Attributes:
        predicted: Classes of the test images, (M,).
        lr, weight_decay: Settings of the head with the best accuracy on the held-out images.
        held_out: Accuracy on the held-out images, from 0 to 1; None if there were too few.
        epochs: Number of training epochs.
    """

    predicted: NDArray[np.int64]
    lr: float
    weight_decay: float
    held_out: float | None
    epochs: int


class AttentiveHeads:
    """G independent heads, each of 32 queries, one value projection, batch norm without weights, and a linear layer.

    The attention of a query over the patches is ``softmax(q . x / sqrt(D))``; its output is a slice of D / 32 numbers
    of the value projection of the attended tokens. Tokens are pooled before they are projected, which gives the same
    result with less work.

    Args:
        heads: G, number of heads.
        dim: D, width of the tokens.
        classes: K, number of classes.
        generator: Source of the initial weights, which are the same for all heads.
    """

    def __init__(self, heads: int, dim: int, classes: int, generator: torch.Generator, device: torch.device) -> None:
        self.queries = math.gcd(dim, QUERIES)
        width = dim // self.queries

        def shared(*shape: int, std: float) -> Tensor:
            one = torch.randn(shape, generator=generator) * std
            return one.expand(heads, *shape).clone().to(device).requires_grad_(True)

        self.parameters = {
            "queries": shared(self.queries, dim, std=0.02),
            "value": shared(self.queries, dim, width, std=dim**-0.5),
            "head": shared(dim, classes, std=0.01),
            "bias": torch.zeros(heads, classes, device=device, requires_grad=True),
        }
        self.mean = torch.zeros(heads, dim, device=device)
        self.variance = torch.ones(heads, dim, device=device)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool the patch tokens by attention: (B, L, D) -> (B, G, D)."""
        queries = self.parameters["queries"]
        heads, count, dim = queries.shape
        scores = tokens @ queries.reshape(heads * count, dim).T * dim**-0.5  # (B, L, G * Q)
        attended = scores.softmax(dim=1).transpose(1, 2) @ tokens  # (B, G * Q, D)
        by_query = attended.transpose(0, 1)  # (G * Q, B, D)
        values = torch.bmm(by_query, self.parameters["value"].reshape(heads * count, dim, -1))  # (G * Q, B, D / Q)
        return values.view(heads, count, len(tokens), -1).permute(2, 0, 1, 3).reshape(len(tokens), heads, dim)

    def train_logits(self, tokens: Tensor) -> Tensor:
        """Logits in training, with the batch norm of this batch: (B, L, D) -> (B, G, K)."""
        pooled = self.pool(tokens)
        variance, mean = torch.var_mean(pooled, dim=0, correction=0)
        with torch.no_grad():
            self.mean.lerp_(mean, 0.1)
            self.variance.lerp_(variance, 0.1)
        return self._named((pooled - mean) * (variance + _BN_EPS).rsqrt())

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Logits in evaluation, with the batch norm's running statistics: (B, L, D) -> (B, G, K)."""
        return self._named((self.pool(tokens) - self.mean) * (self.variance + _BN_EPS).rsqrt())

    def _named(self, pooled: Tensor) -> Tensor:
        return torch.einsum("bgd,gdk->bgk", pooled, self.parameters["head"]) + self.parameters["bias"]


class _Adam:
    """AdamW with a learning rate and weight decay per head; biases are not decayed."""

    def __init__(self, parameters: dict[str, Tensor], weight_decays: Tensor) -> None:
        self.parameters = parameters
        self.weight_decays = weight_decays
        self.first = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.second = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, lrs: Tensor) -> None:
        self.steps += 1
        for name, tensor in self.parameters.items():
            assert tensor.grad is not None
            shape = (-1, *([1] * (tensor.ndim - 1)))
            lr = lrs.view(shape)
            self.first[name].lerp_(tensor.grad, 1 - _BETAS[0])
            self.second[name].lerp_(tensor.grad.square(), 1 - _BETAS[1])
            first = self.first[name] / (1 - _BETAS[0] ** self.steps)
            second = self.second[name] / (1 - _BETAS[1] ** self.steps)
            if name != "bias":
                tensor -= lr * self.weight_decays.view(shape) * tensor
            tensor -= lr * first / (second.sqrt() + _ADAM_EPS)
            tensor.grad = None


def attentive(
    train: Tokens,
    labels: NDArray[np.int64],
    test: Tokens,
    classes: int,
    *,
    device: torch.device,
    seed: int = 0,
    images_seen: int = IMAGES_SEEN,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> AttentiveResult:
    """Train all heads on 90 % of the training images, choose one on the other 10 %, and predict the test images.

    Args:
        train, test: Patch tokens of the N training and M test images.
        labels: (N,) classes of the training images.
        classes: Number of classes.
        device: Device of the heads.
        seed: Seed of weights, order and held-out images.
        images_seen: Number of training images over all epochs; limited to 6 to 100 epochs.
        on_step: Called with the number of finished steps and the total.
    """
    grid = [(lr, decay) for lr in LEARNING_RATES for decay in WEIGHT_DECAYS]
    parts = tenths(labels, seed)[:1]
    held = parts[0] if parts else np.zeros(len(labels), dtype=bool)
    kept, asked = np.flatnonzero(~held), np.flatnonzero(held)
    heads, epochs = _train(train, labels, kept, grid, classes, device, seed, images_seen, on_step)
    if len(asked):
        answers = _predict(heads, train, asked)
        right = (answers == labels[asked, None]).mean(axis=0)
        best, held_out = int(right.argmax()), float(right.max())
    else:
        best, held_out = 0, None
    predicted = _predict(heads, test, np.arange(len(test)))[:, best]
    return AttentiveResult(predicted, *grid[best], held_out, epochs)


def _train(
    tokens: Tokens,
    labels: NDArray[np.int64],
    kept: NDArray[np.int64],
    grid: Sequence[tuple[float, float]],
    classes: int,
    device: torch.device,
    seed: int,
    images_seen: int,
    on_step: Callable[[int, int], None],
) -> tuple[AttentiveHeads, int]:
    dim = tokens.take(kept[:1]).shape[2]
    heads = AttentiveHeads(len(grid), dim, classes, stream(seed, "attentive"), device)
    optimizer = _Adam(heads.parameters, torch.tensor([decay for _, decay in grid], device=device))
    lrs = torch.tensor([lr for lr, _ in grid], device=device)
    batch = min(BATCH, len(kept))
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, -(-images_seen // len(kept))))
    steps, total = 0, epochs * max(1, len(kept) // batch)
    truth = torch.from_numpy(labels)
    for epoch in range(epochs):
        order = kept[torch.randperm(len(kept), generator=stream(seed, "attentive order", epoch)).numpy()]
        for start in range(0, len(order) - batch + 1, batch):
            rows = order[start : start + batch]
            logits = heads.train_logits(tokens.take(rows).to(device).float())
            target = truth[torch.from_numpy(rows)].to(device)[:, None].expand(-1, len(grid))
            # The sum of the heads' mean losses: the gradient of a head depends on its own loss only.
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(lrs * _schedule(steps, total))
            steps += 1
            on_step(steps, total)
    return heads, epochs


def _schedule(step: int, total: int) -> float:
    """Learning rate factor: linear warm-up, then half a cosine to 0."""
    warmup = WARMUP * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def _predict(heads: AttentiveHeads, tokens: Tokens, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Predicted classes of all heads, (len(rows), G)."""
    answers = [
        heads.logits(tokens.take(rows[start : start + BATCH]).to(heads.mean.device).float()).argmax(dim=2).cpu().numpy()
        for start in range(0, len(rows), BATCH)
    ]
    return np.concatenate(answers)
