"""A finding about a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is wrong or suspicious about a tensor.

    Attributes:
        tensor: Its official name, with its third where one alone is meant; or a block's.
        found: What it holds.
        wanted: What it would hold otherwise, or what its neighbours hold.
        sure: Whether training does not produce this behind; else it is only suspicious.
    """

    tensor: str
    found: str
    wanted: str
    sure: bool

    def __str__(self) -> str:
        return f"{self.tensor}: {self.found}; {self.wanted}"


def gravest(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """One finding for each tensor, a sure one before a suspicion, the first of its kind; sure ones come first."""
    chosen: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda one: not one.sure):
        chosen.setdefault(finding.tensor.partition(" ")[0], finding)
    return tuple(chosen.values())
