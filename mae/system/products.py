"""Whether a processor multiplies bf16 matrices faster than fp32 ones: timed, not looked up in a list of features."""

from __future__ import annotations

import dataclasses
import functools
import time

import torch

WORTHWHILE = 1.2  # casting to bf16 takes time too, so bf16 products must be clearly faster
_TRIAL_SIDE, _SIDE, _ROUNDS = 128, 384, 4
_EMULATED = 4.0  # slower by this factor in a small product: bf16 is emulated, and a large product would take a second


@dataclasses.dataclass(frozen=True)
class ProductTimes:
    """Seconds of one matrix product in two precisions; None where torch refuses it."""

    fp32: float
    bf16: float | None

    @property
    def gain(self) -> float:
        """Time of fp32 over time of bf16; 0 if bf16 could not be timed."""
        return self.fp32 / self.bf16 if self.bf16 else 0.0

    @property
    def precision(self) -> str:
        """The precision that ``auto`` chooses: bf16 if it is clearly faster, else fp32."""
        return "bf16" if self.gain >= WORTHWHILE else "fp32"

    def __str__(self) -> str:
        if not self.gain:
            return "bf16 products could not be timed on this processor"
        if self.gain >= 1:
            return f"bf16 products timed at {self.gain:.1f} times the speed of fp32"
        return f"fp32 products timed at {1 / self.gain:.1f} times the speed of bf16"


@functools.cache
def product_times() -> ProductTimes:
    """Time both precisions on the CPU with torch's threads: some 50 ms, once per process."""
    try:
        trial = _fastest(_TRIAL_SIDE)
        return trial if trial.gain * _EMULATED < 1 else _fastest(_SIDE)
    except RuntimeError:  # no bf16 products in this build of torch
        return ProductTimes(0.0, None)


def _fastest(side: int) -> ProductTimes:
    """The fastest of a few alternating rounds, since other programs may slow some of them down."""
    rounds = [(_seconds(torch.float32, side), _seconds(torch.bfloat16, side)) for _ in range(_ROUNDS)]
    return ProductTimes(min(fp32 for fp32, _ in rounds), min(bf16 for _, bf16 in rounds))


def _seconds(dtype: torch.dtype, side: int) -> float:
    """Seconds of one product, after a warm-up product that builds kernels and starts threads."""
    left, right = (torch.ones(side, side, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    start = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - start
