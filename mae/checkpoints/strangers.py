"""Names and words from a file, which a stranger wrote, made fit for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str, longest: int = 80) -> str:
    """A text without what moves a cursor or paints a screen, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])


def a_few(names: Sequence[str]) -> str:
    """The first four names, and whether there are more."""
    return ", ".join(printable(name) for name in names[:4]) + (" ..." if len(names) > 4 else "")
