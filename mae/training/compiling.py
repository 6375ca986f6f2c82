"""Uses torch.compile if the compiled step is measured to be faster on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

TIMED_STEPS = 5
LEAST_GAIN = 1.02  # smaller differences are measurement noise


def compile_if_it_pays(plain: nn.Module, run: Callable[[nn.Module], None]) -> tuple[nn.Module, bool, str]:
    """Compile a loss and keep what is faster.

    torch caches compiled code on the disk, so the next run with the same sizes starts faster.

    Args:
        plain: The loss as a module, its model on its device.
        run: Takes a forward and a backward pass with a loss, and waits until they are done.

    Returns:
        The loss to use, whether it is the compiled one, and the result in a sentence.
    """
    began = time.monotonic()
    try:
        compiled: nn.Module = torch.compile(plain)  # type: ignore[assignment]
        run(compiled)
    except Exception as error:  # for instance no C++ compiler, no Triton, or a full disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return plain, False, f"torch.compile failed, so the step is not compiled: {reason[:200]}"
    took = time.monotonic() - began
    seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
    run(plain)
    for _ in range(TIMED_STEPS):  # alternating, so that both see the same load of the machine
        for name, loss in (("plain", plain), ("compiled", compiled)):
            start = time.monotonic()
            run(loss)
            seconds[name].append(time.monotonic() - start)
    gain = statistics.median(a / b for a, b in zip(seconds["plain"], seconds["compiled"], strict=True))
    what = f"the compiled step is {gain:.2f} times as fast as the plain one (compiling took {took:.0f} s)"
    if gain < LEAST_GAIN:
        return plain, False, f"{what}, so it is not used"
    return compiled, True, what


def compiled_loss(loss: nn.Module) -> nn.Module:
    """The compiled loss without timing it: a resumed run keeps the arithmetic that it was started with."""
    return torch.compile(loss)  # type: ignore[return-value]
