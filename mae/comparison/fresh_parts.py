"""Finds matrices at initial values within a file that was trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import ROUNDING, Measures

_UNIFORM = 0.8660  # mean absolute value over root mean square, for uniform values
_INITIAL = "trained matrices exceed these bounds, as the others here do"
_OUTSIDE = 20  # expected number of values beyond the bounds that makes finding none significant


def find_fresh(measured: Sequence[Measures]) -> list[Finding]:
    """Find matrices, or parts of their rows, at initial values, while other matrices of the file are not.

    Initial values are uniform within the bounds of Xavier's initialisation. Training moves some values beyond them; the
    usual number is taken from the other matrices.
    """
    matrices = [one for one in measured if one.unit.is_matrix and one.constant is None]
    if not matrices:
        return []
    # Matrices move beyond the bounds at different rates, but within a factor of five. Up to a quarter may be damaged.
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
    """Find contiguous rows at initial values in a matrix whose other rows are not."""
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
    """Whether ``size`` values are consistent with a uniform distribution between the bounds.

    The largest of n uniform values is within 40 / n of the bound, except with probability e^-40.
    """
    return (
        size >= 256
        and 1 - max(40 / size, ROUNDING) < reach <= 1 + ROUNDING
        and abs(flatness - _UNIFORM) < 4 * 0.26 / size**0.5
    )
