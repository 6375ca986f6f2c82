"""The attentive probe computes its paper's formula, and finds what the mean of patches does not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation import attentive as module
from mae.evaluation.attentive import LEARNING_RATES, AttentiveHeads, attentive
from mae.evaluation.linear import linear

CPU = torch.device("cpu")


class InMemory:
    """Tokens in memory."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        return self.tokens[torch.from_numpy(rows)]


def test_pooling_as_the_paper_writes_it() -> None:
    """For each query: softmax over patches, then its slice of the projected values; all slices side by side."""
    heads = AttentiveHeads(2, 64, 3, torch.Generator().manual_seed(0), CPU)
    for tensor in heads.parameters.values():
        tensor.data.normal_(generator=torch.Generator().manual_seed(1))
    tokens = torch.randn(5, 9, 64, generator=torch.Generator().manual_seed(2))
    found = heads.pool(tokens)
    queries, values = heads.parameters["queries"], heads.parameters["value"]
    assert queries.shape == (2, 32, 64)
    for head in range(2):
        projection = torch.cat(list(values[head]), dim=1)  # (D, D): one slice of columns for each query
        projected = tokens @ projection  # (B, L, D)
        slices = []
        for number, query in enumerate(queries[head]):
            weights = (tokens @ query / 8).softmax(dim=1)  # (B, L)
            slices.append(torch.einsum("bl,blc->bc", weights, projected[:, :, 2 * number : 2 * number + 2]))
        torch.testing.assert_close(found[:, head], torch.cat(slices, dim=1), atol=1e-4, rtol=1e-4)


def test_heads_do_not_touch_each_other() -> None:
    """A head's gradient does not depend on the other heads."""
    tokens = torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1] * 4)
    gradients = []
    for count in (1, 3):
        heads = AttentiveHeads(count, 32, 2, torch.Generator().manual_seed(0), CPU)
        logits = heads.train_logits(tokens)
        target = labels[:, None].expand(-1, count)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").backward()
        grad = heads.parameters["queries"].grad
        assert grad is not None
        gradients.append(grad[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_pooled_tokens_are_normalised_by_their_batch_and_later_by_what_was_seen() -> None:
    heads = AttentiveHeads(2, 32, 3, torch.Generator().manual_seed(0), CPU)
    tokens = torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(2))
    pooled = heads.pool(tokens).detach()
    mean, variance = pooled.mean(dim=0), pooled.var(dim=0, correction=0)

    def logits(mean: Tensor, variance: Tensor) -> Tensor:
        return torch.einsum("bgd,gdk->bgk", (pooled - mean) / (variance + 1e-6).sqrt(), heads.parameters["head"])

    torch.testing.assert_close(heads.train_logits(tokens), logits(mean, variance))
    torch.testing.assert_close(heads.logits(tokens), logits(0.1 * mean, 0.9 + 0.1 * variance))


def test_each_head_takes_the_steps_of_torchs_adamw() -> None:
    """With its own learning rate and weight decay, and without decay of its bias."""
    lrs, decays = (0.1, 0.02), (0.1, 0.5)
    stream = torch.Generator().manual_seed(0)
    start = {name: torch.randn(2, 3, generator=stream) for name in ("head", "bias")}
    gradients = [{name: torch.randn(2, 3, generator=stream) for name in start} for _ in range(3)]
    found = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = module._Adam(found, torch.tensor(decays))
    for gradient in gradients:
        for name, tensor in found.items():
            (tensor * gradient[name]).sum().backward()
        optimizer.step(torch.tensor(lrs))
    for head, (lr, decay) in enumerate(zip(lrs, decays, strict=True)):
        wanted = {name: tensor[head].clone().requires_grad_() for name, tensor in start.items()}
        groups = [{"params": [wanted["head"]], "weight_decay": decay}, {"params": [wanted["bias"]], "weight_decay": 0}]
        theirs = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999))
        for gradient in gradients:
            for name, tensor in wanted.items():
                tensor.grad = gradient[name][head].clone()
            theirs.step()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name][head], tensor)


def test_every_epoch_has_an_order_of_its_own_and_every_step_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight images in full batches of three: two steps in each of the six epochs."""
    rates: list[list[float]] = []
    taken: list[list[int]] = []

    class Noted(InMemory):
        def take(self, rows: NDArray[np.int64]) -> Tensor:
            taken.append(rows.tolist())
            return super().take(rows)

    monkeypatch.setattr(module, "BATCH", 3)
    monkeypatch.setattr(module._Adam, "step", lambda _, lrs: rates.append(lrs.tolist()))
    tokens = torch.randn(8, 4, 32, generator=torch.Generator().manual_seed(2))
    steps: list[tuple[int, int]] = []
    train, test = Noted(tokens), InMemory(tokens)
    attentive(train, np.arange(8), test, 8, device=CPU, images_seen=1, on_step=lambda *at: steps.append(at))
    assert steps == [(number, 12) for number in range(1, 13)]
    epochs = [taken[1 + 2 * epoch] + taken[2 + 2 * epoch] for epoch in range(6)]  # the first one is read for its width
    assert all(len(order) == len(set(order)) == 6 for order in epochs)
    assert len(set(map(tuple, epochs))) == 6
    for number, lrs in enumerate(rates):
        assert lrs == pytest.approx([lr * module._schedule(number, 12) for lr in LEARNING_RATES])
    by_hand = {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 0.5, 100: 0.0}
    assert {step: module._schedule(step, 100) for step in by_hand} == pytest.approx(by_hand)


def test_the_head_that_names_held_out_images_best_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them was trained on. The second head is right about all of them, the first about none."""
    truth = np.arange(40) % 2
    train, test = (InMemory(torch.zeros(count, 1, 32)) for count in (40, 5))
    kept: list[int] = []
    asked: list[int] = []

    def trained(tokens: InMemory, labels: NDArray[np.int64], rows: NDArray[np.int64], *_: object) -> tuple[None, int]:
        kept.extend(rows.tolist())
        return None, 6

    def answers(heads: None, tokens: InMemory, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        if tokens is test:
            return np.array([[7, 8]] * len(rows))
        asked.extend(rows.tolist())
        return np.stack([1 - truth[rows], truth[rows]], axis=1)

    monkeypatch.setattr(module, "_train", trained)
    monkeypatch.setattr(module, "_predict", answers)
    found = attentive(train, truth, test, 2, device=CPU)
    assert (found.lr, found.held_out, found.predicted.tolist()) == (LEARNING_RATES[1], 1.0, [8] * 5)
    assert sorted(kept + asked) == list(range(40))
    assert len(asked) == 4


def spots(count: int, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Nine patches; the class is a sign in one marked patch, and the other patches have random signs."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=stream)
    tokens = torch.randn(count, 9, 32, generator=stream)
    place = torch.randint(9, (count,), generator=stream)
    rows = torch.arange(count)
    tokens[rows, place, 0] = 12.0
    tokens[rows, place, 1] = (labels * 2 - 1) * 3.0
    tokens[:, :, 1] += 4 * torch.randn(count, 9, generator=stream) * (tokens[:, :, 0] < 9)
    return tokens, labels.numpy()


def test_it_looks_where_the_mean_does_not() -> None:
    (train, labels), (test, truth) = spots(1200, 0), spots(400, 1)
    found = attentive(InMemory(train.half()), labels, InMemory(test.half()), 2, device=CPU, images_seen=40_000)
    attended = (found.predicted == truth).mean()
    averaged = (linear(train.mean(1), labels, test.mean(1), 2).predicted == truth).mean()
    assert attended > 0.95
    assert averaged < 0.8
    assert found.held_out is not None
    assert found.held_out > 0.9


def test_one_image_of_each_class_is_enough_to_run() -> None:
    tokens, _ = spots(3, 0)
    found = attentive(InMemory(tokens), np.array([0, 1, 2]), InMemory(tokens), 3, device=CPU, images_seen=30)
    assert (found.held_out, found.epochs) == (None, 10)
    assert found.predicted.shape == (3,)


def test_the_same_seed_gives_the_same_answers() -> None:
    (train, labels), (test, _) = spots(100, 0), spots(50, 1)
    runs = [
        attentive(InMemory(train), labels, InMemory(test), 2, device=CPU, seed=4, images_seen=1000).predicted
        for _ in range(2)
    ]
    assert np.array_equal(*runs)
