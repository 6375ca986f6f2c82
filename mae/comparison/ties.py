"""Correlations between tensors that training produces ("ties"), by which exchanged or damaged tensors are found.

They appear after a few hundred steps and become stronger with every epoch:

* the norms of the weights that write a channel correlate with those that read it: rows of queries and keys, rows of
  values and columns of the projection, rows of the MLP's first layer and columns of its second, and a norm's weights
  and the columns that read them;
* a bias correlates negatively with the weights times the bias of the norm before it, which it compensates;
* along the channels of the residual stream, a tensor correlates with the same tensor of neighbouring blocks.

The usual strength of a tie is estimated from the file's own blocks, so a fresh or random file, which has no ties, gives
no findings.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from mae.comparison.findings import Finding
from mae.comparison.measures import THIRDS, Array, Measures, units_of
from mae.comparison.neighbours import FEWEST

_Blocks = Sequence[Mapping[str, Measures]]  # blocks in the order of depth, each role -> measurements

_QUERIES, _KEYS, _VALUES = (f"attn.qkv.weight {third}" for third in THIRDS)
# Within a block: two profiles that correlate.
_PARTNERS = (
    ((_QUERIES, "rows"), (_KEYS, "rows")),
    ((_VALUES, "rows"), ("attn.proj.weight", "columns")),
    (("mlp.fc1.weight", "rows"), ("mlp.fc2.weight", "columns")),
    (("norm1.weight", "numbers"), (_QUERIES, "columns")),
    (("norm1.weight", "numbers"), (_KEYS, "columns")),
    (("norm1.weight", "numbers"), (_VALUES, "columns")),
    (("norm2.weight", "numbers"), ("mlp.fc1.weight", "columns")),
)
# Within a block: a bias, and the weights times the bias of the norm before them.
_COMPENSATED = (
    ("attn.qkv.bias queries", _QUERIES, "norm1.bias"),
    ("attn.qkv.bias values", _VALUES, "norm1.bias"),
    ("mlp.fc1.bias", "mlp.fc1.weight", "norm2.bias"),
)
# Between blocks.
_ALIKE = (
    *((role, "columns") for role in (_QUERIES, _KEYS, _VALUES, "mlp.fc1.weight")),
    *((role, "rows") for role in ("attn.proj.weight", "mlp.fc2.weight")),
    *((role, "numbers") for role in ("attn.proj.bias", "mlp.fc2.bias")),
)
_CLEAR = 4.5  # standard errors from which a correlation counts as a tie
_FEWEST_CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class _Tie:
    """A tie of one block.

    Attributes:
        labels: Labels of its tensors.
        correlation: Correlation of the two profiles.
        strength: The correlation in standard errors, by Fisher's transformation.
        at_end: Whether the block is the first or the last, which usually differ from the others.
    """

    labels: tuple[str, ...]
    correlation: float
    strength: float
    at_end: bool


@dataclasses.dataclass(frozen=True)
class _Broken:
    """A tie that is missing in one block.

    Attributes:
        tie: The tie.
        usual: Usual correlation in the other blocks.
        weakest: Strength that all other blocks but one reach.
        turned: Whether the correlation has the opposite sign.
    """

    tie: _Tie
    usual: float
    weakest: float
    turned: bool


def find_broken_ties(measured: Sequence[Measures], state: Mapping[str, Tensor]) -> list[Finding]:
    """Find tensors whose ties are missing, or have the opposite sign, while the other blocks have them.

    A single tie may be weak without damage, so a tensor is suspicious only if two ties are missing, or one that is very
    strong in all other blocks.
    """
    parts: dict[str, dict[int, dict[str, Measures]]] = defaultdict(lambda: defaultdict(dict))
    for one in measured:
        if one.unit.block is not None:
            parts[one.unit.part][one.unit.block][one.unit.role] = one
    ordered = [[blocks[number] for number in sorted(blocks)] for blocks in parts.values() if len(blocks) > 1]
    kinds = [*_inside_blocks(ordered, state), *(kind for blocks in ordered for kind in _between_blocks(blocks, state))]
    broken = [tie for kind in kinds for tie in _broken(kind)]
    votes = Counter(label for gone in broken for label in set(gone.tie.labels))
    findings = []
    for gone in sorted(broken, key=lambda gone: -gone.weakest):
        suspect = max(gone.tie.labels, key=lambda label: votes[label])
        overwhelming = gone.weakest > 2 * _CLEAR
        if votes[suspect] < 2 and not overwhelming and not gone.turned:
            continue
        others = [other for other in gone.tie.labels if other != suspect]
        partner = " and ".join(others) if others else "the same tensor of the blocks next to it"
        findings.append(
            Finding(
                suspect,
                f"it does not match {partner} (correlation {gone.tie.correlation:.2f})",
                f"about {gone.usual:.2f} is usual in this file",
                votes[suspect] > 1 and overwhelming and not gone.tie.at_end,
            )
        )
    return findings


def _broken(ties: Sequence[_Tie]) -> Iterator[_Broken]:
    """Ties that are missing although all other blocks but at most one (the other of two exchanged blocks) have them."""
    if len(ties) < FEWEST:
        return
    sign = math.copysign(1, float(np.median([tie.strength for tie in ties])))
    usual = float(np.median([tie.correlation for tie in ties]))
    strengths = [sign * tie.strength for tie in ties]
    for number, tie in enumerate(ties):
        weakest = sorted([*strengths[:number], *strengths[number + 1 :]])[1]
        if weakest > _CLEAR and strengths[number] < min(3.0, 0.4 * weakest):
            yield _Broken(tie, usual, weakest, strengths[number] < -_CLEAR)


def _inside_blocks(parts: Sequence[_Blocks], state: Mapping[str, Tensor]) -> Iterator[list[_Tie]]:
    for (one, one_axis), (other, other_axis) in _PARTNERS:
        yield [
            _tie(
                (block[one], block[other]),
                _profile(block[one], one_axis, state),
                _profile(block[other], other_axis, state),
                at_end,
            )
            for block, at_end in _whole_blocks(parts, (one, other))
            if one_axis != "numbers" or not at_end
        ]
    for bias, weight, norm in _COMPENSATED:
        yield [
            _tie(
                (block[bias], block[weight], block[norm]),
                _numbers(block[bias], state)[0],
                _numbers(block[weight], state) @ _numbers(block[norm], state)[0].astype(np.float64),
                at_end,
            )
            for block, at_end in _whole_blocks(parts, (bias, weight, norm))
            if not at_end  # in the first block this tie has the opposite sign
        ]


def _whole_blocks(parts: Sequence[_Blocks], roles: tuple[str, ...]) -> Iterator[tuple[Mapping[str, Measures], bool]]:
    """The blocks that have all of these tensors, and whether each is the first or the last."""
    for blocks in parts:
        for number, block in enumerate(blocks):
            if all(role in block for role in roles):
                yield block, number in (0, len(blocks) - 1)


def _between_blocks(blocks: _Blocks, state: Mapping[str, Tensor]) -> Iterator[list[_Tie]]:
    for role, axis in _ALIKE:
        own = list(_whole_blocks([blocks], (role,)))
        profiles = [_profile(block[role], axis, state) for block, _ in own]
        if len({len(profile) for profile in profiles}) == 1:
            yield [
                _tie((block[role],), profile, _around(profiles, number), at_end)
                for number, ((block, at_end), profile) in enumerate(zip(own, profiles, strict=True))
                if not at_end  # the first and last block have neighbours on one side only
            ]


def _profile(one: Measures, axis: str, state: Mapping[str, Tensor]) -> Array:
    if axis == "numbers":
        numbers: Array = _numbers(one, state)[0].astype(np.float64)
        return numbers
    return one.rows if axis == "rows" else one.columns


def _numbers(one: Measures, state: Mapping[str, Tensor]) -> Array:
    """Read a unit's values again, (rows, columns)."""
    name = one.unit.tensor
    return next(unit.values for unit in units_of({name: state[name]}) if unit.third == one.unit.third)


def _around(profiles: Sequence[Array], number: int) -> Array:
    """Sum of the two profiles on each side, each scaled, so that an outlier does not dominate the sum."""
    near = [
        profiles[place] for place in range(number - 2, number + 3) if place != number and 0 <= place < len(profiles)
    ]
    scaled = [(profile - profile.mean()) / max(float(profile.std()), 1e-30) for profile in near]
    total: Array = np.add.reduce(scaled)
    return total


def _tie(members: Sequence[Measures], first: Array, second: Array, at_end: bool) -> _Tie:
    labels = tuple(member.unit.label for member in members)
    one, other = first.astype(np.float64), second.astype(np.float64)
    if len(one) != len(other) or len(one) < _FEWEST_CHANNELS or not np.ptp(one) > 0 or not np.ptp(other) > 0:
        return _Tie(labels, 0.0, 0.0, at_end)
    correlation = float(np.corrcoef(one, other)[0, 1])
    strength = math.atanh(min(max(correlation, -0.999999), 0.999999)) * math.sqrt(len(first) - 3)
    return _Tie(labels, correlation, strength, at_end)
