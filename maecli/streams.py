"""Makes standard output and error accept any text in any encoding. Standard library only."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TextIO

ERRORS = "maecli"
_LIKE = dict(zip("█▓▒░━╸╺─│–—‘’“”•·…×✗±≈µ", """#=+.----|--''""*..xx~~u""", strict=True))
_BLOCKS = range(0x2580, 0x25A0)  # block elements, used in bars
_BOXES = range(0x2500, 0x2580)  # box drawing characters
_BYTES = range(0xDC80, 0xDD00)  # surrogates by which Python represents undecodable bytes of a path


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replacements for characters that the encoding lacks, one for one, so that tables keep their alignment."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    code = ord(character)
    replacement: str | bytes
    if code in _BYTES:
        replacement = bytes([code - 0xDC00])  # the original byte of the path
    elif code in _BLOCKS or code in _BOXES:
        replacement = _LIKE.get(character, "|" if code in _BLOCKS else "+")
    else:
        replacement = _LIKE.get(character) or character.encode("ascii", "backslashreplace").decode()
    return replacement, error.start + 1


codecs.register_error(ERRORS, _replace)


def prepare_streams() -> None:
    """Make standard output and error accept any text; output to a closed stream is discarded."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)


def discard(stream: TextIO) -> None:
    """Discard all further output of a stream whose reader has closed it, without an error at exit."""
    with contextlib.suppress(OSError, ValueError):  # the stream has no file descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
