"""Runs the command line in this process, with a terminal or a pipe of any kind."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from maecli.app import app


class Stream(io.TextIOWrapper):
    """A standard output or error that records the output, with or without being a terminal."""

    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def written(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@dataclass
class Seen:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def both(self) -> str:
        return self.out + self.err


def run_at(
    *arguments: str | Path, encoding: str = "utf-8", terminal: bool = False, columns: int | None = None, **env: str
) -> Seen:
    """Run a command; ``env`` is added to an environment without variables about terminals."""
    out, err = Stream(encoding, terminal), Stream(encoding, terminal)
    quiet = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    changes = quiet | {"TERM": "xterm-256color"} | ({"COLUMNS": str(columns)} if columns else {}) | env
    with mock.patch.dict(os.environ, changes, clear=True), mock.patch.multiple(sys, stdout=out, stderr=err):
        try:
            app([str(argument) for argument in arguments], prog_name="maecli")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    return Seen(code, out.written(), err.written())
