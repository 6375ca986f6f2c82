"""Damage that a file's own numbers show: every tensor against what no training leaves, and against its neighbours.

No list of accidents is looked for. Each tensor is measured (``measures``), and what was measured is compared with
bounds that hold for any fresh or trained model (``bounds``), against the same tensor of the neighbouring blocks
(``neighbours``), against the tensors that training ties to it (``ties``), against initial values (``fresh_parts``)
and against every other row of the file (``copies``).
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
    """Everything that looks damaged, the sure findings first.

    Args:
        state: Tensors under official names, of the right shapes and finite; position tables are not looked at.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith("pos_embed") and tensor.numel()}
    return judge([measure(unit) for unit in units_of(state)], state)


def judge(measured: Sequence[Measures], state: Mapping[str, Tensor]) -> tuple[Finding, ...]:
    """As ``find_damage``, from what was measured of the same tensors."""
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
    # A part that is fresh as a whole is said once, not once for every tensor of it.
    parts = {one.tensor for one in untrained} & {"the encoder", "the decoder"}
    findings = [one for one in findings if f"the {'de' if is_decoder(one.tensor) else 'en'}coder" not in parts]
    return gravest(untrained + findings)
