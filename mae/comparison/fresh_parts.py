"""Parts at the values that initialisation gives, inside a file that was trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import ROUNDING, Measures

_UNIFORM = 0.8660  # mean absolute number over the root mean square of uniform numbers
_INITIAL = "trained matrices exceed these bounds, as the others here do"
_OUTSIDE = 20  # numbers that would be beyond the bounds by chance, where none is


def find_fresh(measured: Sequence[Measures]) -> list[Finding]:
    """Matrices, or parts of their rows, at initial values, where other matrices of the file have left them.

    Initial values lie within the bounds of Xavier's uniform distribution and fill them evenly. Each step moves some
    numbers beyond; how many is usual is told by the other matrices.
    """
    matrices = [one for one in measured if one.unit.is_matrix and one.constant is None]
    if not matrices:
        return []
    # Matrices differ in how fast they leave their bounds, but not by five times; a quarter of them may be damaged.
    usual = float(np.quantile([one.outside for one in matrices], 0.75)) / 5
    fresh = [one for one in matrices if _fills(one.reach, one.flatness, one.size)]
    fresh = [one for one in fresh if usual * one.size > _OUTSIDE]
    parts: dict[str, list[Measures]] = defaultdict(list)
    for one in matrices:
        parts["decoder" if one.unit.tensor.startswith("decoder_") else "encoder"].append(one)
    for name, own in parts.items():
        if len(own) < len(matrices) and all(one in fresh for one in own):
            found = "all of its matrices are spread evenly over the bounds of their initial values"
            return [Finding(f"the {name}", found, "never trained, or not loaded", True)]
    findings = [
        Finding(one.unit.label, "spread evenly over the bounds of its initial values", _INITIAL, True) for one in fresh
    ]
    return findings + [finding for one in matrices if one not in fresh for finding in _partly(one)]


def _partly(one: Measures) -> Iterator[Finding]:
    """Contiguous rows at initial values, in a matrix that has left them."""
    shares = len(one.share_reach)
    size = one.size // shares
    if shares < 2 or one.outside * size < _OUTSIDE:
        return
    still = [
        _fills(float(reach), float(flatness), size)
        for reach, flatness in zip(one.share_reach, one.share_flatness, strict=True)
    ]
    if any(still):
        rows = one.shape[0]
        found = (
            f"{sum(still) * rows // shares} of its {rows} rows, from {still.index(True) * rows // shares} on, are "
            "spread evenly over the bounds of their initial values"
        )
        yield Finding(one.unit.label, found, _INITIAL, True)


def _fills(reach: float, flatness: float, size: int) -> bool:
    """Whether so many numbers are as uniform between the bounds as chance allows.

    The largest of n uniform numbers is within 40 / n of the bound but once in e^40 times.
    """
    return (
        size >= 256
        and 1 - max(40 / size, ROUNDING) < reach <= 1 + ROUNDING
        and abs(flatness - _UNIFORM) < 4 * 0.26 / size**0.5
    )
