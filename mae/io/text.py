"""Names and words from a file, which a stranger wrote, made fit for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mae.errors import CheckpointError

USABLE_TYPES = ("float32", "float16", "bfloat16", "float64")


def printable(text: str, longest: int = 80) -> str:
    """A text without what moves a cursor or paints a screen, and not too long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:longest])


def a_few(names: Sequence[str]) -> str:
    """The first four names, and whether there are more."""
    return ", ".join(printable(name) for name in names[:4]) + (" ..." if len(names) > 4 else "")


def unusable_type(path: Path, name: str, number: str) -> CheckpointError:
    """The refusal of a tensor whose numbers no model computes with: 8-bit floats, integers.

    Args:
        path: The file.
        name: The tensor's.
        number: Its type, for instance "float8_e4m3fn".
    """
    floats = number.startswith(("float8", "float4", "F8", "F6", "F4"))
    return CheckpointError(
        f"{path}: {printable(name)} is {printable(number)}; weights must be floats of 16 bits or more "
        f"({', '.join(USABLE_TYPES)})",
        hint=f"{'a file in 8-bit floats' if floats else 'a quantised file'} has lost most of its digits and cannot be "
        "read; get the float32 or bfloat16 weights it was made from",
    )


def shown(name: str | Path) -> str:
    r"""A name on one line: bytes that are no UTF-8 as ``\xff``, a new line as ``\n``, nothing that a terminal obeys."""
    text = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
