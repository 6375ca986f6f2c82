"""Text from a file or a path, which anybody may have written, made fit for a terminal and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def shown(text: str | Path, longest: int | None = None) -> str:
    r"""A text on one line: bytes that are no UTF-8 as ``\xff``, a new line as ``\n``, nothing that a terminal obeys.

    Args:
        text: Of any characters, lone surrogates among them.
        longest: Maximum number of characters; None for all.
    """
    text = str(text)[:longest]
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def a_few(names: Sequence[str]) -> str:
    """The first four names, and whether there are more."""
    return ", ".join(shown(name, 80) for name in names[:4]) + (" ..." if len(names) > 4 else "")
