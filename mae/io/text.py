"""Makes untrusted text, such as file names, safe to print in a terminal or on a page."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePath

_FOLDED_URL = re.compile(r"\A([a-z][a-z0-9+.-]+):/(?=[^/])")


def shown(text: str | Path, longest: int | None = None) -> str:
    r"""A text on one line, with invalid UTF-8 as ``\xff``, new lines as ``\n`` and control characters escaped.

    Args:
        text: Any text; it may hold lone surrogates.
        longest: Maximum number of characters; None for all.
    """
    text = unfolded(text)[:longest]
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def unfolded(path: str | Path) -> str:
    """A path as text; slashes of a URL that ``Path`` would drop are there again."""
    text = path.as_posix() if isinstance(path, PurePath) else str(path)
    if not _FOLDED_URL.match(text):
        return str(path)
    from mae.options import SLASH_KEPT  # here, because --help does not need it

    return _FOLDED_URL.sub(r"\1://", text).replace(SLASH_KEPT, "")


def typed(path: str | Path) -> str:
    """A path as it has to be typed in a shell, quoted where it holds a space or another special character."""
    if os.name == "nt":
        from subprocess import list2cmdline

        return shown(list2cmdline([str(path)]))
    return shown(shlex.quote(str(path)))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def a_few(names: Sequence[str]) -> str:
    """The first four names, and "..." if there are more."""
    return ", ".join(shown(name, 80) for name in names[:4]) + (" ..." if len(names) > 4 else "")


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and what it counts: "1 image", "1,200 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are distinct; paths that are given twice are numbered."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]  # noqa: PTH100 - does not follow links
    names = [str(path) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def first_line(error: BaseException) -> str:
    """The first line of an error's message; without a message the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
