"""Uses torch.compile if the compiled step is measured to be faster on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from mae.io.text import first_line

TIMED_STEPS = 5
LEAST_GAIN = 1.02  # smaller differences are measurement noise


def compile_if_it_pays(plain: nn.Module, run: Callable[[nn.Module], None]) -> tuple[nn.Module, bool, str]:
    """Compile a loss, time it against the plain one, and return the faster.

    torch caches compiled code on the disk, so the next run with the same sizes starts faster.

    Args:
        plain: The loss as a module, its model on its device.
        run: Runs a forward and a backward pass of the loss it is given, and waits until they are done.

    Returns:
        The loss to use, whether it is the compiled one, and a sentence that says what was measured.
    """
    began = time.monotonic()
    try:
        compiled: nn.Module = torch.compile(plain)  # type: ignore[assignment]
        run(compiled)
    except Exception as error:  # for instance no C++ compiler, no Triton, or a full disk
        return plain, False, f"torch.compile failed, so the step is not compiled: {first_line(error)[:200]}"
    took = time.monotonic() - began
    seconds: dict[str, list[float]] = {"plain": [], "compiled": []}
    run(plain)
    for _ in range(TIMED_STEPS):  # alternating, so that both are timed under the same load of the machine
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
    """Compile a loss without timing it, for a resumed run: its rounding must stay as in the run's beginning."""
    return torch.compile(loss)  # type: ignore[return-value]
