"""Runs the real command on a machine with two simulated GPUs, for processes that torchrun starts.

The code is told of the two GPUs and asked for a device as with real ones; torch keeps the tensors on the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from tests.distributed import small


def say(what: str) -> None:
    """Print a line with this process's rank."""
    sys.stderr.write(f"rank {os.environ['RANK']}: {what}\n")
    sys.stderr.flush()


def set_device(device: Any) -> None:
    """As torch does before it calls the driver: a device without an index is refused."""
    say(f"set_device {torch.cuda._utils._get_device_index(device)}")


init_process_group = dist.init_process_group


def init_on_gloo(*, backend: str, device_id: torch.device | None, **options: Any) -> None:
    """Use Gloo instead of NCCL."""
    if device_id is None or device_id.index is None:
        raise ValueError("Please use a device_id with index.")
    say(f"group {backend} on {device_id}")
    init_process_group(backend="gloo", **options)


class OnTheHost(TorchFunctionMode):
    """Allocates tensors on the host instead of a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*tree_map(_moved, args), **tree_map(_moved, kwargs or {}))


def _moved(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def for_the_tool(told: Any, truth: Callable[[], Any]) -> Callable[[], Any]:
    """Different answers for our code and for torch's code."""
    return lambda: told if sys._getframe(1).f_globals["__name__"].startswith("mae") else truth()


def main() -> None:
    torch.cuda.is_available = for_the_tool(True, torch.cuda.is_available)
    torch.cuda.device_count = for_the_tool(2, torch.cuda.device_count)  # type: ignore[assignment]
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.set_device = set_device
    torch.cuda.get_device_properties = lambda number: SimpleNamespace(  # type: ignore[misc,assignment]
        name=f"made up {number}", total_memory=2**34, major=9, minor=0
    )
    dist.init_process_group = init_on_gloo  # type: ignore[assignment]
    with OnTheHost():
        small.main()


if __name__ == "__main__":
    main()
