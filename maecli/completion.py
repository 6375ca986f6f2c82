"""Values for shell completion; if there are none, the shell completes file names."""

from __future__ import annotations

from collections.abc import Callable

from mae.options import Option

Complete = Callable[[str], list[str]]


def completion_of(name: str, declared: Option) -> Complete | None:
    """Completions for the beginning of a value; None leaves it to the shell."""
    if declared.choices:
        return lambda incomplete: [word for word in declared.choices if word.startswith(incomplete)]
    return _BY_OPTION.get(name)


def _variants(incomplete: str) -> list[str]:
    from mae.models import VARIANTS

    return [name for name in VARIANTS if name.startswith(incomplete)]


def _accelerators(incomplete: str) -> list[str]:
    from mae.profiling.accelerators import ACCELERATORS

    return [name for name in ACCELERATORS if name.startswith(incomplete)]


def _references(incomplete: str) -> list[str]:
    from mae.comparison.config import REFERENCES

    return [name for name in REFERENCES if incomplete and name.startswith(incomplete)]


def _releases(incomplete: str) -> list[str]:
    """Released names; empty until something is typed, so that the shell first offers files."""
    from mae.checkpoints.builtin import BUILTIN
    from mae.checkpoints.hub import RELEASES

    return [name for name in (BUILTIN, *RELEASES) if incomplete and name.startswith(incomplete)]


_BY_OPTION: dict[str, Complete] = {
    "variant": _variants,
    "gpu": _accelerators,
    "reference": _references,
    "checkpoint": _releases,
    "official": _releases,
    "init": _releases,
}
