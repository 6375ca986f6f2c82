"""Bounds for a single tensor and its counterparts in other blocks: zeros, constants, stuck bits, outliers.

The bounds allow what occurs in trained vision transformers: a few outlier channels with far larger values than the
others, norms with some negative weights, very small biases, and sizes that change with depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import Measures

_VANISHED = -57.0  # log of a root mean square of 1e-25, which training does not produce; near float32's limit
_VAST = 9.0  # log of a root mean square of 8000, which training does not produce either
_FAR_FROM_INITIAL = (math.log(20), math.log(300))  # log of (rms / initial rms) of a matrix: suspicious, sure
_UNUSUAL = "training does not produce this"


def beyond_bounds(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    """Check a tensor against all bounds.

    Args:
        one: Measurements of the tensor.
        fellows: Measurements of the same tensor in the other blocks; empty for a tensor outside blocks.
    """
    for rule in _RULES:
        yield from rule(one, fellows)


def _zeros(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    unit, usual = one.unit, _usual([other.zeros for other in fellows])
    if one.constant == 0:
        # Biases start at zero, so a zero bias is a finding only if the other blocks' biases are not zero.
        is_bias = unit.role.endswith((".bias", ".bias queries", ".bias values"))
        if unit.is_matrix or unit.is_norm_weight or unit.role.endswith("_token"):
            yield Finding(unit.label, "all zeros", _UNUSUAL, True)
        elif is_bias and fellows and not _most(fellows, lambda other: other.constant == 0):
            size = math.exp(_usual([other.level for other in fellows]))
            yield Finding(unit.label, "all zeros", f"in the other blocks their size is about {size:.2g}", True)
    elif one.zero_rows and not _most(fellows, lambda other: other.zero_rows > 0):
        yield Finding(unit.label, f"{one.zero_rows} of its {one.shape[0]} rows are zeros", _UNUSUAL, True)
    elif one.zero_columns and not _most(fellows, lambda other: other.zero_columns > 0):
        text = f"{one.zero_columns} of its {one.shape[1]} columns are zeros"
        # Adding an input channel without trained weights leads to zero columns in the patch projection.
        yield Finding(unit.label, text, _UNUSUAL, unit.role != "patch_embed.proj.weight")
    elif one.zeros > 8 * usual + (1e-5 if unit.is_matrix else 0.02) and unit.role != "attn.qkv.bias keys":
        count = round(one.zeros * one.size)
        wanted = f"{usual:.1%} are in the other blocks" if fellows else _UNUSUAL
        if count >= (16 if unit.is_matrix else 2):
            sure = unit.is_matrix or one.zeros > 0.1
            yield Finding(unit.label, f"{count} of its {one.size} numbers are exactly zero", wanted, sure)


def _constants(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    unit = one.unit
    if one.constant is not None and one.constant != 0:
        # Norm weights start at 1, and in a short type they stay at 1 until a change exceeds its resolution.
        is_start = unit.is_norm_weight and abs(one.constant - 1) < 0.05
        if one.size > 1 and not (is_start and not _most(fellows, lambda other: abs(other.largest - 1) > 0.15)):
            yield Finding(unit.label, f"every number is {one.constant:.4g}", _UNUSUAL, True)
    elif one.constant_rows and unit.is_matrix and not _most(fellows, lambda other: other.constant_rows > 0):
        rows = f"{one.constant_rows} of its {one.shape[0]} rows hold one number throughout"
        yield Finding(unit.label, rows, _UNUSUAL, True)


def _few_values(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    """Find values that are quantised more coarsely than bfloat16."""
    if one.constant is None and _is_coarse(one):
        found = f"{one.repeated:.0%} of the numbers in a row are there twice, as if rounded to few values"
        wanted = f"bfloat16 would leave {one.repeated_in_bfloat16:.0%}"
        yield Finding(one.unit.label, found, wanted, bool(fellows) and not _most(fellows, _is_coarse))


def _is_coarse(one: Measures) -> bool:
    # Norm weights start at exactly 1, and stay there for a while in a short type.
    least = 0.1 if one.unit.is_matrix else 0.3
    return one.size >= 64 and one.repeated > least + 1.5 * one.repeated_in_bfloat16


def _clipped(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    """Find tensors with more values at exactly the largest magnitude than rounding explains."""
    if one.unit.is_matrix and _is_clipped(one) and not _most(fellows, _is_clipped):
        found = f"{one.at_limit:.1%} of its numbers are exactly {abs(one.largest):.3g} or -{abs(one.largest):.3g}"
        yield Finding(one.unit.label, found, "its largest number is clipped; training does not produce this", True)


def _is_clipped(one: Measures) -> bool:
    few_below = one.at_limit > 4 * one.near_limit
    return one.constant is None and one.at_limit * one.size > 32 and one.at_limit > 1e-3 and few_below


def _low_rank(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    if one.rank is not None and not _most(fellows, lambda other: other.rank is not None):
        found = f"its rank is about {one.rank}"
        yield Finding(one.unit.label, found, "training leaves no matrix of exactly low rank", True)


def _bits(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    explained = one.constant is not None or one.zero_rows or one.constant_rows or _is_coarse(one)
    if one.stuck and not explained and not _most(fellows, lambda other: other.stuck is not None):
        yield Finding(one.unit.label, one.stuck, "it changes in the other blocks", True)


def _size(one: Measures, _: Sequence[Measures]) -> Iterator[Finding]:
    unit = one.unit
    if one.constant == 0:
        return
    if not _VANISHED < one.level < _VAST:
        yield Finding(unit.label, f"its size is {math.exp(one.level):.1e}", _UNUSUAL, True)
    elif unit.is_matrix or unit.is_norm_weight:
        initial = -math.log(unit.fan / 2) / 2 if unit.is_matrix else 0.0
        suspicious, sure = (abs(one.level - initial) > far for far in _FAR_FROM_INITIAL)
        if suspicious:
            wanted = f"{math.exp(initial):.2g} is what training starts from"
            yield Finding(unit.label, f"its size is {math.exp(one.level):.2g}", wanted, sure)


def _outlier(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    """Find a single value far larger than all others of its tensor and of the same tensor in other blocks.

    Outlier channels are usual in trained models, but they are the same ones in all blocks.
    """
    unit, size = one.unit, abs(one.largest)
    peak = _peak(one)
    least_size, sure_size = (0.5, 20) if unit.is_matrix else (10, 50)
    usual_size = max((abs(fellow.largest) for fellow in fellows), default=0.0)
    usual_peak = max((_peak(fellow) for fellow in fellows), default=math.inf)
    # Single channels of biases and norms may be large in trained models.
    alone = peak > (60 if unit.is_matrix else 200) and one.gap > 4
    alone = alone or (unit.is_matrix and peak > max(20, 4 * usual_peak) and one.gap > 3)
    if one.constant is not None or size < max(least_size, 4 * usual_size) or not alone:
        return
    place = ", ".join(str(index) for index in one.place)
    found = f"element [{place}] is {one.largest:.4g}, {one.gap:.3g} times the next largest"
    yield Finding(unit.label, found, f"the usual size there is {one.robust_std:.2g}", peak > 200 and size > sure_size)


def _peak(one: Measures) -> float:
    """Distance of the most extreme value in robust stds; a std of 0 (by rounding) is replaced by a small one."""
    return abs(one.largest) / max(one.robust_std, 0.01 * abs(one.median), 1e-30)


def _signs(one: Measures, fellows: Sequence[Measures]) -> Iterator[Finding]:
    unit = one.unit
    share = f"{one.positive:.0%} of its numbers are positive"
    if one.constant is not None or one.size < 32:
        return
    if unit.is_matrix:
        if not 0.1 < one.positive < 0.9 and not _most(fellows, lambda other: not 0.3 < other.positive < 0.7):
            yield Finding(unit.label, share, "about half of a weight matrix is positive", True)
    elif unit.is_norm_weight:
        if one.positive < 0.75 and not _most(fellows, lambda other: other.positive < 0.9):
            wanted = "the weights of a norm stay positive"
            yield Finding(unit.label, share, wanted, one.positive < 0.65)
    elif (
        not 0.02 < one.positive < 0.98
        and abs(one.median) > max(0.1, 3 * one.robust_std)
        and fellows
        and not _most(fellows, lambda other: not 0.1 < other.positive < 0.9)
        # Training drives the biases before GELU down, some blocks' below zero as a whole.
        and not (unit.label.endswith("mlp.fc1.bias") and one.median < 0)
    ):
        yield Finding(unit.label, f"{share}, around {one.median:.2g}", "biases are distributed around zero", True)


def _most(fellows: Sequence[Measures], has: Callable[[Measures], bool]) -> bool:
    """Whether ``has`` is true for most of the fellows; False if there are none."""
    return 2 * sum(has(fellow) for fellow in fellows) > len(fellows)


def _usual(numbers: Sequence[float]) -> float:
    return float(np.median(numbers)) if numbers else 0.0


# In order of priority: the first rule with a finding explains the tensor best.
_RULES = (_zeros, _constants, _outlier, _size, _few_values, _clipped, _bits, _signs, _low_rank)
