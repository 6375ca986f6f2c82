"""Finds parts and matrices at initial values within a file that was trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import ROUNDING, Measures

_UNIFORM = 0.8660  # mean absolute value over root mean square, for uniform values
_INITIAL = "trained matrices exceed these bounds, as the others here do"
_UNMOVED = "all biases of its blocks are 0 and all weights of their norms 1"
_NEVER_TRAINED = "never trained, or not loaded"
_OUTSIDE = 20  # expected number of values beyond the bounds that makes finding none significant


def find_fresh(measured: Sequence[Measures]) -> list[Finding]:
    """Find the encoder or decoder, matrices, or parts of their rows, at initial values, while the rest is not.

    However matrices are initialised, biases start at 0 and the weights of norms at 1. The matrices of this model start
    uniform within the bounds of Xavier's initialisation. Training moves some values beyond them; the usual number is
    taken from the other matrices.
    """
    if (name := _unmoved_part(measured)) is not None:
        return [Finding(f"the {name}", _UNMOVED, _NEVER_TRAINED, True)]
    matrices = [one for one in measured if one.unit.is_matrix and one.constant is None]
    if not matrices:
        return []
    # Matrices move beyond the bounds at different rates, but within a factor of five. Up to a quarter may be damaged.
    usual = float(np.quantile([one.outside for one in matrices], 0.75)) / 5
    fresh = [one for one in matrices if _fills(one.reach, one.flatness, one.size)]
    fresh = [one for one in fresh if usual * one.size > _OUTSIDE]
    parts: dict[str, list[Measures]] = defaultdict(list)
    for one in matrices:
        parts[_part(one)].append(one)
    for name, own in parts.items():
        if len(own) < len(matrices) and all(one in fresh for one in own):
            found = "all of its matrices are spread evenly over the bounds of their initial values"
            return [Finding(f"the {name}", found, _NEVER_TRAINED, True)]
    findings = [
        Finding(one.unit.label, "spread evenly over the bounds of its initial values", _INITIAL, True) for one in fresh
    ]
    return findings + [finding for one in matrices if one not in fresh for finding in _partly(one)]


def _part(one: Measures) -> str:
    return "decoder" if one.unit.tensor.startswith("decoder_") else "encoder"


def _unmoved_part(measured: Sequence[Measures]) -> str | None:
    """The part whose blocks have all biases and norms at their initial values, while those of the other part have not.

    Only blocks, since the bias of the patch projection starts at random values.
    """
    moved: dict[str, bool] = {}
    for one in measured:
        if one.unit.block is not None and not one.unit.is_matrix:
            moved[_part(one)] = moved.get(_part(one), False) or one.constant != float(one.unit.is_norm_weight)
    return next((part for part in moved if not moved[part]), None) if any(moved.values()) else None


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
