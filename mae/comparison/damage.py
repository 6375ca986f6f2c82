"""Finds damaged tensors in a single file, by bounds for each tensor and by comparison with the other blocks.

Each tensor is measured (``measures``). The measurements are compared with bounds that hold for any fresh or trained
model (``bounds``), with the same tensor of the neighbouring blocks (``neighbours``), with tensors that training
correlates with it (``ties``), with the distribution of initial values (``fresh_parts``), and with every other row of
the file (``copies``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import Tensor

from mae.checkpoints.build import is_decoder
from mae.comparison.bounds import beyond_bounds
from mae.comparison.copies import find_copies
from mae.comparison.findings import Finding, gravest
from mae.comparison.fresh_parts import find_fresh
from mae.comparison.kernels import find_disorder
from mae.comparison.measures import Measures, measure, units_of
from mae.comparison.neighbours import FEWEST, unlike_neighbours
from mae.comparison.ties import find_broken_ties

_OTHER_PART = {"blocks": "decoder_blocks", "decoder_blocks": "blocks"}


def find_damage(state: Mapping[str, Tensor]) -> tuple[Finding, ...]:
    """Find damage in a state dict; certain findings come first.

    Args:
        state: Finite tensors of the right shapes under official names; position tables are not examined.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith("pos_embed") and tensor.numel()}
    return judge([measure(unit) for unit in units_of(state)], state)


def judge(measured: Sequence[Measures], state: Mapping[str, Tensor]) -> tuple[Finding, ...]:
    """Like ``find_damage``, with given measurements of the same tensors."""
    families: dict[tuple[str, str], list[Measures]] = defaultdict(list)
    for one in measured:
        families[one.unit.part, one.unit.role].append(one)
    findings: list[Finding] = []
    for (part, role), family in families.items():
        family.sort(key=lambda one: one.unit.block or 0)
        elsewhere = families.get((_OTHER_PART[part], role), []) if part in _OTHER_PART else []
        for number, one in enumerate(family):
            fellows = [*family[:number], *family[number + 1 :]]
            findings += beyond_bounds(one, fellows if len(fellows) >= FEWEST else fellows + elsewhere)
        findings += unlike_neighbours(family)
    findings += find_copies(state)
    findings += find_broken_ties(measured, state)
    findings += find_disorder(state)
    untrained = find_fresh(measured)
    # A part that is entirely at initial values is one finding, not one per tensor.
    parts = {one.tensor for one in untrained} & {"the encoder", "the decoder"}
    findings = [one for one in findings if f"the {'de' if is_decoder(one.tensor) else 'en'}coder" not in parts]
    return gravest(untrained + findings)
