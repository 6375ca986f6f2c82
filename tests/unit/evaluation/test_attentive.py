"""The attentive probe computes its paper's formula, and finds what the mean of patches does not show."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.evaluation.attentive import AttentiveHeads, attentive
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
    assert found.held_out is None
    assert found.predicted.shape == (3,)


def test_the_same_seed_gives_the_same_answers() -> None:
    (train, labels), (test, _) = spots(100, 0), spots(50, 1)
    runs = [
        attentive(InMemory(train), labels, InMemory(test), 2, device=CPU, seed=4, images_seen=1000).predicted
        for _ in range(2)
    ]
    assert np.array_equal(*runs)
