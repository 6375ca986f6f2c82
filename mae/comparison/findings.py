"""A finding about a tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Finding:
    """A wrong or suspicious property of a tensor.

    Attributes:
        tensor: Official name of the tensor or block; with "queries", "keys" or "values" for a third of ``attn.qkv``.
        found: What was found, as text.
        wanted: What is expected instead, as text.
        sure: Whether training cannot produce this; otherwise it is only suspicious.
    """

    tensor: str
    found: str
    wanted: str
    sure: bool

    def __str__(self) -> str:
        return f"{self.tensor}: {self.found}; {self.wanted}"


def gravest(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The first finding of each tensor, preferring sure ones; sure findings come first."""
    chosen: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda one: not one.sure):
        chosen.setdefault(finding.tensor.partition(" ")[0], finding)
    return tuple(chosen.values())
