"""A fake CUDA device: torch's fake tensors, which have shapes and devices but no data.

Forward passes, updates and copies run as on a GPU, and a tensor on the wrong device is an error. Only the autograd
engine needs the driver's streams, so here the graph is walked in Python.
"""

from __future__ import annotations

import itertools
import unittest.mock
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators for whose result the host waits, although none of their tensors is on the host.
READS = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "allclose",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Simulate one GPU with bf16 for tensors on ``cuda``."""
    number = itertools.count(1)

    def backward(self: Tensor, *_: Any, **__: Any) -> None:
        task = next(number)
        with unittest.mock.patch("torch._C._current_graph_task_id", return_value=task):
            walk_backward(self)

    with ExitStack() as stack:
        for name, value in {
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.Tensor.backward": backward,
        }.items():
            stack.enter_context(unittest.mock.patch(name, value))
        stack.enter_context(FakeTensorMode())
        yield


def walk_backward(loss: Tensor) -> None:
    """``loss.backward()`` without the engine: each node of the graph once, after all nodes that give its gradients."""
    assert loss.grad_fn is not None
    waits_for: dict[Any, int] = {loss.grad_fn: 0}
    todo = [loss.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                if node not in waits_for:
                    todo.append(node)
                waits_for[node] = waits_for.get(node, 0) + 1
    arrived: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            there = arrived.pop(node, {})
            inputs = [there.get(place) for place in range(len(node._input_metadata))]
            results = node(*inputs) if there else None
            gradients: Sequence[Any] = results if isinstance(results, tuple) else (results,)
            for (following, place), gradient in itertools.zip_longest(node.next_functions, gradients):
                if following is None:
                    continue
                if gradient is not None:
                    slots = arrived.setdefault(following, {})
                    gradient = _fitted(gradient, following._input_metadata[place])
                    slots[place] = slots[place] + gradient if place in slots else gradient
                waits_for[following] -= 1
                if waits_for[following] == 0:
                    ready.append(following)


def _fitted(gradient: Tensor, wanted: Any) -> Tensor:
    """The gradient between nodes, as the engine does: summed over broadcast dimensions, in the value's type."""
    assert gradient.device == wanted.device
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient.to(wanted.dtype)


class Traffic(TorchDispatchMode):
    """Records transfers between host and device.

    Attributes:
        waits: Operators that make the host wait for the device.
        sent: Number of elements of each copy to the device that does not wait.
        product_types: Number formats of the factors of matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.sent: list[int] = []
        self.product_types: set[torch.dtype] = set()
        self._pinned: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if name == "_pin_memory":  # fake tensors do not support pinned memory
            pinned = args[0].clone()
            self._pinned.append(pinned)
            return pinned
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name in ("mm", "addmm"):
            self.product_types.add(given[-1].dtype)
        on_device = any(value.is_cuda for value in given)
        if on_device and (
            name in READS or (name in INDEXING and any(value.dtype == torch.bool for value in given[1:]))
        ):
            self.waits.append(f"{func} reads")
        out = func(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
            if source.is_cuda != target.is_cuda:
                self._copy(name, source, target, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        elif on_device:
            self._mixed(func, given, out)
        return out

    def _copy(self, name: str, source: Tensor, target: Tensor, non_blocking: bool) -> None:
        what = f"{name} of {tuple(source.shape)} {source.dtype} from {source.device} to {target.device}"
        if source.is_cuda:
            self.waits.append(f"{what} reads")  # without waiting, the host would read incomplete data
        elif not non_blocking or not self._is_pinned(source):
            self.waits.append(f"{what}, {'not pinned' if non_blocking else 'blocking'}")
        else:
            self.sent.append(source.numel())

    def _is_pinned(self, tensor: Tensor) -> bool:
        return any(pinned is tensor or pinned is tensor._base for pinned in self._pinned)

    def _mixed(self, func: Any, given: list[Tensor], out: Any) -> None:
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if any(not value.is_cuda for value in results):
            self.waits.append(f"{func} gives the host a tensor")
        if any(not value.is_cuda and value.ndim for value in given):
            self.waits.append(f"{func} takes a tensor of the host's")
