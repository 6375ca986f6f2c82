"""Compares each tensor with the same tensor of neighbouring blocks.

The usual value is a median, because one damaged block hardly changes it. Differences below a floor are allowed: the
first and the last block differ from the others, and early in training all blocks are so similar that their scatter is
tiny.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import Array, Measures, share_starts

FEWEST = 4  # blocks needed to determine what is usual
_NEAREST = 4
# Factors between root mean squares: suspicious, sure. Biases start at zero and reach very different sizes; weights and
# norms stay near their initial size.
_LEVELS = {"matrix": (2.5, 20.0), "norm": (5.0, 50.0), "vector": (50.0, 3000.0)}
_STRUCTURED = 0.3  # structure above which a matrix is certainly trained
_TIMES = (8.0, 14.0)  # multiples of the neighbours' scatter: suspicious, sure
# Properties of contiguous parts of a matrix, and the difference between parts that is suspicious, and sure.
_SHARES: tuple[tuple[str, Callable[[Measures], Array], float, float], ...] = (
    ("rows", lambda one: one.rows, math.log(1.4), math.log(2.5)),
    ("columns", lambda one: one.columns, math.log(1.4), math.log(2.5)),
    ("rows", lambda one: one.flat_rows, 0.03, 0.06),
)
_HEADS_DIFFER = 3.0  # factor by which differences are larger if the parts are attention heads
_BY_HEADS = {
    ("attn.qkv.weight queries", "rows"),
    ("attn.qkv.weight keys", "rows"),
    ("attn.qkv.weight values", "rows"),
    ("attn.proj.weight", "columns"),
}


def unlike_neighbours(family: Sequence[Measures]) -> Iterator[Finding]:
    """Find tensors that differ from the same tensor of neighbouring blocks.

    Args:
        family: Measurements of the same tensor in all blocks of the encoder or decoder, in the order of depth.
    """
    if len(family) >= FEWEST:
        yield from _levels(family)
        yield from _shares(family)
        yield from _structures(family)


@dataclasses.dataclass(frozen=True)
class Residual:
    """The difference between a block's value and what its neighbours predict.

    Attributes:
        expected: Median of the nearest neighbours' values.
        off: The value minus ``expected``.
        scatter: Robust std of ``off`` of the other blocks.
        at_end: Whether it is the first or the last block, which usually differ from the others.
    """

    expected: float
    off: float
    scatter: float
    at_end: bool

    def beyond(self, floor: float, times: float) -> bool:
        """Whether ``off`` exceeds the floor (1.5 times it for the first and last block) and ``times`` the scatter."""
        return abs(self.off) > max(floor * (1.5 if self.at_end else 1.0), times * self.scatter)


def residuals(numbers: Sequence[float]) -> list[Residual]:
    """The residual of each block's value, in the order of depth; there must be at least two blocks."""
    values = np.asarray(numbers, dtype=np.float64)
    places = np.arange(len(values))
    expected = np.empty_like(values)
    for place in places:
        others = np.delete(places, place)
        nearest = others[np.argsort(np.abs(others - place), kind="stable")][:_NEAREST]
        expected[place] = np.median(values[nearest])
    off = values - expected
    return [
        Residual(
            float(expected[place]),
            float(off[place]),
            1.4826 * float(np.median(np.abs(np.delete(off, place)))),
            place in (0, len(values) - 1),
        )
        for place in places
    ]


def _levels(family: Sequence[Measures]) -> Iterator[Finding]:
    # The loss does not depend on the bias of the keys, which cancels in the softmax; only rounding changes it.
    family = [one for one in family if one.constant != 0 and one.unit.role != "attn.qkv.bias keys"]
    if len(family) < FEWEST:
        return
    unit = family[0].unit
    kind = "matrix" if unit.is_matrix else "norm" if unit.is_norm_weight else "vector"
    suspicious, sure = (math.log(factor) for factor in _LEVELS[kind])
    for one, residual in zip(family, residuals([one.level for one in family]), strict=True):
        if residual.beyond(suspicious, _TIMES[0]):
            found = f"its size is {math.exp(one.level):.2g}"
            wanted = f"about {math.exp(residual.expected):.2g} is usual in the blocks next to it"
            yield Finding(one.unit.label, found, wanted, residual.beyond(sure, _TIMES[1]))


def _structures(family: Sequence[Measures]) -> Iterator[Finding]:
    """Find a matrix with the singular values of a random one, while all other blocks but at most one are trained."""
    for number, one in enumerate(family):
        others = sorted(other.structure for other in (*family[:number], *family[number + 1 :]))
        if one.unit.is_matrix and one.constant is None and others[1] > _STRUCTURED and one.structure < others[1] / 4:
            found = "its singular values are spread as those of random numbers"
            yield Finding(one.unit.label, found, "those of the other blocks are not", False)


def _shares(family: Sequence[Measures]) -> Iterator[Finding]:
    """Find a contiguous part of a matrix that differs from the rest in size or in the shape of its distribution."""
    usable = [one for one in family if one.unit.is_matrix and one.constant is None]
    for what, profile_of, suspicious, sure in _SHARES:
        profiles = [_shares_of(profile_of(one)) for one in usable]
        if len(usable) < FEWEST or len({len(profile) for profile in profiles}) > 1 or len(profiles[0]) < 2:
            continue
        factor = _HEADS_DIFFER if (usable[0].unit.role, what) in _BY_HEADS else 1.0
        middle = np.median(profiles, axis=0)
        steps = [_step(profile - middle) for profile in profiles]
        for one, (_, share), residual in zip(usable, steps, residuals([size for size, _ in steps]), strict=True):
            if residual.off > 0 and residual.beyond(suspicious * factor, _TIMES[0]):
                at = one.shape[0 if what == "rows" else 1] * share // len(middle)
                yield Finding(
                    one.unit.label,
                    f"its {what} up to {at} are unlike those from {at} on",
                    "in the other blocks they are not",
                    residual.beyond(sure * factor, _TIMES[1]),
                )


def _shares_of(profile: Array) -> Array:
    """Median of each contiguous part, which a trained model's few outlier channels hardly change."""
    starts = share_starts(len(profile))
    if len(profile) % len(starts) == 0:  # the usual case, with one NumPy call instead of eight
        medians: Array = np.median(profile.reshape(len(starts), -1), axis=1)
        return medians
    return np.array([np.median(share) for share in np.split(profile, starts[1:])])


def _step(profile: Array) -> tuple[float, int]:
    """The largest difference between the means before and after an index, and that index."""
    before, places = np.cumsum(profile), np.arange(1, len(profile))
    differences = np.abs(before[:-1] / places - (before[-1] - before[:-1]) / (len(profile) - places))
    place = int(np.argmax(differences))
    return float(differences[place]), place + 1
