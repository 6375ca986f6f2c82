"""Compare each tensor with the same one of neighbouring blocks.

Medians give the usual value, because one bad block does not change them. Floors allow natural differences: the first
and the last block differ from the others, and after a few steps of training all blocks are still nearly the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mae.comparison.findings import Finding
from mae.comparison.measures import Array, Measures, share_starts

FEWEST = 4  # blocks that tell what is usual
_NEAREST = 4
# Factors of a root mean square: suspicious, and sure. Biases start at zero and grow to very different sizes; weights
# and norms start at a size and stay near it.
_LEVELS = {"matrix": (2.5, 20.0), "norm": (5.0, 50.0), "vector": (50.0, 3000.0)}
_STRUCTURED = 0.3  # structure that training has left beyond doubt
_TIMES = (8.0, 14.0)  # the scatter of the neighbours: suspicious, and sure
# What is compared of contiguous shares of a matrix, and from which step between them on it is suspicious, and sure.
_SHARES: tuple[tuple[str, Callable[[Measures], Array], float, float], ...] = (
    ("rows", lambda one: one.rows, math.log(1.4), math.log(2.5)),
    ("columns", lambda one: one.columns, math.log(1.4), math.log(2.5)),
    ("rows", lambda one: one.flat_rows, 0.03, 0.06),
)
_HEADS_DIFFER = 3.0  # that step is so much larger by nature where the shares are heads
_BY_HEADS = {
    ("attn.qkv.weight queries", "rows"),
    ("attn.qkv.weight keys", "rows"),
    ("attn.qkv.weight values", "rows"),
    ("attn.proj.weight", "columns"),
}


def unlike_neighbours(family: Sequence[Measures]) -> Iterator[Finding]:
    """Tensors that differ from the same one of neighbouring blocks.

    Args:
        family: The same tensor of a part's blocks, in the order of depth.
    """
    if len(family) >= FEWEST:
        yield from _levels(family)
        yield from _shares(family)
        yield from _structures(family)


@dataclasses.dataclass(frozen=True)
class Residual:
    """The difference between a block's number and what its neighbours predict.

    Attributes:
        expected: The median of its nearest neighbours.
        off: The number less what is expected.
        scatter: Robust std of the other blocks' own ``off``.
        at_end: Whether it is the first block or the last, which differ from the others by nature.
    """

    expected: float
    off: float
    scatter: float
    at_end: bool

    def beyond(self, floor: float, times: float) -> bool:
        """Whether it is off by more than a floor (half as much again at an end) and by so many times the scatter."""
        return abs(self.off) > max(floor * (1.5 if self.at_end else 1.0), times * self.scatter)


def residuals(numbers: Sequence[float]) -> list[Residual]:
    """Each of a family's numbers, in the order of depth, against the others; they must be at least two."""
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
    # Nothing trains a key's bias but rounding, since softmax does not see it.
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
    """A matrix whose singular values are those of random numbers, though all other blocks but one have left them."""
    for number, one in enumerate(family):
        others = sorted(other.structure for other in (*family[:number], *family[number + 1 :]))
        if one.unit.is_matrix and one.constant is None and others[1] > _STRUCTURED and one.structure < others[1] / 4:
            found = "its singular values are spread as those of random numbers"
            yield Finding(one.unit.label, found, "those of the other blocks are not", False)


def _shares(family: Sequence[Measures]) -> Iterator[Finding]:
    """One contiguous part of a matrix unlike the rest of it, by size or by the form of its distribution."""
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
    """The median of each contiguous share, which the few outlier channels of a trained model do not move."""
    starts = share_starts(len(profile))
    if len(profile) % len(starts) == 0:  # as it nearly always is; one call of NumPy's in place of eight
        medians: Array = np.median(profile.reshape(len(starts), -1), axis=1)
        return medians
    return np.array([np.median(share) for share in np.split(profile, starts[1:])])


def _step(profile: Array) -> tuple[float, int]:
    """The largest difference between the means on both sides of a place, and the place."""
    before, places = np.cumsum(profile), np.arange(1, len(profile))
    differences = np.abs(before[:-1] / places - (before[-1] - before[:-1]) / (len(profile) - places))
    place = int(np.argmax(differences))
    return float(differences[place]), place + 1
