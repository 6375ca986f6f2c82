"""The only place that prints: results on stdout, talk on stderr.

Human output is made of rich tables and panels; ``--json`` prints exactly one JSON document; ``--quiet``
prints the one value that a script wants. Notes, warnings, progress and errors always go to stderr.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mae.files import shown

if TYPE_CHECKING:
    from rich.console import Console

    from mae.errors import MaeError


class Output:
    """Where a command shows its result and talks about it.

    Args:
        as_json: Print the result as one JSON document.
        quiet: Print one value only, and no notes.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._downloaded: tuple[str, int] | None = None
        if isinstance(sys.stdout, io.TextIOWrapper):  # a path's bytes go out as they came in
            sys.stdout.reconfigure(errors="surrogateescape")

    def result(self, document: Callable[[], Any], human: Callable[[Console], None], value: Any) -> None:
        """Show a command's result in the way that was asked for.

        Args:
            document: Gives plain values for ``--json``; NaN and infinity become null.
            human: Draws the result on a rich console.
            value: What ``--quiet`` prints.
        """
        if self.as_json:
            values = _finite(document())
            text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
            # A file's name may hold bytes that are no UTF-8: escaped, they come back from any JSON reader.
            print(text if _is_utf8(text) else json.dumps(values, indent=2, allow_nan=False))
        elif self.quiet:
            print(value)
        else:
            human(make_console(sys.stdout))

    def text(self, lines: str) -> None:
        """Print text for another program as it stands, neither wrapped nor coloured."""
        print(lines)

    def talk(self, renderable: Any) -> None:
        """Show a panel or a line to the person at the terminal; ``--quiet`` keeps it back."""
        if not self.quiet:
            make_console(sys.stderr).print(renderable)

    def note(self, message: str) -> None:
        """Say something that the user should know and that is not wrong."""
        if not self.quiet:
            _say("note", "cyan", message)

    def count(self, done: int, total: int, what: str) -> None:
        """Count things that take a while: one changing line on a terminal, a line now and then elsewhere."""
        terminal = sys.stderr.isatty()
        if self.quiet or total < 8 or not (terminal or done % 50 == 0):
            return
        print(f"{done} of {total} {what}", file=sys.stderr, end="\r" if terminal and done < total else "\n")

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """Say what is being done on one changing line of a terminal; keep still elsewhere."""
        console = make_console(sys.stderr)
        if self.quiet or not console.is_terminal:
            yield lambda step: None
            return
        with console.status("") as status:
            yield status.update

    def download(self, what: str, done: int, total: int | None) -> None:
        """Tell how a download proceeds, a line for every tenth of it."""
        part = (what, 10 * done // total if total else done // 100_000_000)
        if self.quiet or part == self._downloaded:
            return
        self._downloaded = part
        of = f" of {total / 1e6:,.0f}" if total else ""
        print(f"downloading {what}: {done / 1e6:,.0f}{of} MB", file=sys.stderr)

    def warn(self, message: str) -> None:
        """Say something that may be wrong; shown with ``--quiet`` too."""
        _say("warning", "yellow", message)


def show_error(error: MaeError) -> None:
    """Print an error and, if it has one, its hint; of several processes each says which one it is."""
    rank = os.environ.get("RANK")
    _say(f"process {rank}: error" if rank is not None else "error", "bold red", error.message)
    if error.hint:
        _say("hint", "cyan", error.hint)


def make_console(stream: Any) -> Console:
    """A rich console for a stream: 100 columns and no colour where it is no terminal."""
    from rich.console import Console

    return Console(file=stream, width=None if stream.isatty() else 100, highlight=False)


def _say(kind: str, style: str, message: str) -> None:
    from rich.text import Text

    text = Text.assemble((f"{kind}: ", style), shown(message))
    make_console(sys.stderr).print(text, soft_wrap=True)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
