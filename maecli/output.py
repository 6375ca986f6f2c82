"""The only place that prints: results on stdout, everything else on stderr.

Human output is made of rich tables and panels; ``--json`` prints exactly one JSON document; ``--quiet``
prints the one value that a script wants. Notes, warnings, progress and errors always go to stderr.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from mae.errors import ConfigError, MaeError, advice_on_gpu, is_out_of_memory
from mae.io.text import first_line, shown
from maecli.streams import discard

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

INTERRUPTED = 130
EXIT_SIGPIPE = 141  # 128 + SIGPIPE, as shells report a program whose reader closed the pipe
_UNBOUNDED = 10_000
_SKIPPED_SHOWN = 8
_COLUMNS = 100  # width if the stream is not a terminal


class Output:
    """A command's output: its result, notes, warnings and errors.

    As a context manager, it shows an error within it in readable form, and ends the command with the error's exit
    code.

    Args:
        as_json: Print the result as one JSON document.
        quiet: Print one value only, and no notes.
        verbose: Print details, and the traceback of an error.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose
        self._started = time.monotonic()
        self._downloaded: tuple[str, int] | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.verbose:
            self.detail(f"took {time.monotonic() - self._started:.1f} s{_peak_memory()}")
        if error is None or type(error).__module__.split(".")[0] == "typer":  # an exit that a command chose
            return
        if isinstance(error, KeyboardInterrupt):
            _say_plainly("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        if os.environ.get("MAECLI_DEBUG") == "1" or not isinstance(error, Exception):
            return
        if self.verbose:
            _show_traceback(error)
        raise typer.Exit(_show_failure(error, traceback_shown=self.verbose)) from None

    def result(self, document: Callable[[], Any], human: Callable[[Console], None], value: Any) -> None:
        """Show a command's result in the requested form.

        Args:
            document: Returns plain values for ``--json``; NaN and infinity become null.
            human: Prints the result on a rich console.
            value: The value that ``--quiet`` prints.
        """
        with _writing():
            if self.as_json:
                values = _finite(document())
                import json

                text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
                # A file name may hold characters that the encoding lacks; JSON escapes preserve them.
                print(text if _can_print(text) else json.dumps(values, indent=2, allow_nan=False))
            elif self.quiet:
                print(value)
            else:
                human(make_console(sys.stdout))
            sys.stdout.flush()

    def file(self, content: bytes, human: Callable[[Console], None]) -> None:
        """Write a file to standard output, and a description of it to standard error."""
        with _writing():
            sys.stdout.buffer.write(content)
            sys.stdout.flush()
        if not self.quiet:
            human(make_console(sys.stderr))

    def check_takes_file(self) -> None:
        """Check, before anything is computed, that a file can be written to standard output.

        Raises:
            ConfigError: Standard output is a terminal, or is used by ``--json``.
        """
        if self.as_json:
            raise ConfigError("--out - and --json both write to standard output", hint="drop one of them")
        if sys.stdout.isatty():
            raise ConfigError(
                "--out - writes an image to standard output, which is a terminal here",
                hint="redirect it with > grid.png, or pipe it into another program with |",
            )

    def show(
        self,
        result: Any,
        human: Callable[[Console, Any], None],
        value: Any,
        document: Callable[[Any], Any] | None = None,
    ) -> None:
        """Print the notes of a use case's result, the images that it skipped, and the result.

        Args:
            result: The result.
            human: Prints it for people, to the given console.
            value: What ``--quiet`` prints.
            document: Makes the document of ``--json`` of it; ``as_document`` by default.
        """
        for note in getattr(result, "notes", ()):
            self.note(note)
        warn_skipped(self, getattr(result, "skipped", ()))
        self.result(lambda: (document or as_document)(result), lambda console: human(console, result), value)

    def text(self, lines: str) -> None:
        """Print text for another program unchanged, neither wrapped nor coloured."""
        with _writing():
            print(lines, flush=True)

    def say(self, line: str) -> None:
        """Print one line unchanged; not with ``--quiet``."""
        if not self.quiet:
            make_console(sys.stderr).print(line, soft_wrap=True, markup=False)

    def note(self, message: str) -> None:
        """Print a note: information for the user that is not a problem."""
        if not self.quiet:
            _say("note", "cyan", message)

    def count(self, done: int, total: int, what: str) -> None:
        """Show the progress of counted items: one changing line on a terminal, occasional lines elsewhere.

        ``total`` is 0 as long as it is unknown.
        """
        terminal = can_redraw(sys.stderr)
        if self.quiet or 0 < total < 8 or not (terminal or done % 50 == 0):
            return
        of = f" of {total}" if total else ""
        _say_plainly(f"{done}{of} {what}", end="\r" if terminal and done != total else "\n")

    @contextmanager
    def steps(self) -> Iterator[Callable[[str], None]]:
        """Show the current step on one changing line of a terminal; nothing elsewhere."""
        console = make_console(sys.stderr)
        if self.quiet or not can_redraw(sys.stderr):
            yield self.detail
            return
        from rich.text import Text

        with console.status("", spinner="line") as status:
            yield lambda step: status.update(Text(shown(step)))  # not markup: a step may name a folder

    def download(self, what: str, done: int, total: int | None) -> None:
        """Show the progress of a download, one line per 10 %."""
        part = (what, 10 * done // total if total else done // 100_000_000)
        if self.quiet or part == self._downloaded:
            return
        self._downloaded = part
        of = f" of {total / 1e6:,.0f}" if total else ""
        _say_plainly(f"downloading {what}: {done / 1e6:,.0f}{of} MB")

    def warn(self, message: str) -> None:
        """Print a warning, also with ``--quiet``."""
        _say("warning", "bold magenta", message)

    def detail(self, message: str) -> None:
        """Print a detail with ``--verbose``."""
        if self.verbose:
            _say("detail", "dim", message)


def show_error(error: MaeError) -> None:
    """Print an error and its hint, if any; with several processes, also the number of the process."""
    rank = os.environ.get("RANK")
    _say(f"process {rank}: error" if rank is not None else "error", "bold red", error.message)
    for line in error.details:
        _say_plainly(f"  {shown(line)}")
    if error.hint:
        _say("hint", "cyan", error.hint)


def warn_skipped(output: Output, skipped: Sequence[tuple[str | Path, str]]) -> None:
    """Print warnings that name the first skipped images and the reasons."""
    for name, reason in skipped[:_SKIPPED_SHOWN]:
        output.warn(f"skipped {shown(name)}: {reason}")
    if len(skipped) > _SKIPPED_SHOWN:
        output.warn(f"and {len(skipped) - _SKIPPED_SHOWN:,} more were skipped; --json names all")


def make_console(stream: Any) -> Console:
    """A rich console for a stream; if it is not a terminal, without colour and 100 (or COLUMNS) columns wide."""
    from rich.console import Console

    width = _columns(stream)
    # Rich assumes 80 columns for a dumb terminal unless both width and height are given.
    height = 25 if width and not can_redraw(stream) else None
    console = Console(file=stream, width=width, height=height, highlight=False, emoji=False)
    # Rich's own handler exits with code 1, which means a failed check.
    setattr(console, "on_broken_pipe", _nobody_listens if stream is sys.stderr else _broken_pipe)  # noqa: B010
    return console


def _columns(stream: Any) -> int | None:
    """The width in columns; None lets rich determine it."""
    named = os.environ.get("COLUMNS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    if not stream.isatty():
        return _COLUMNS
    return None if can_redraw(stream) else shutil.get_terminal_size().columns


def width_of(stream: Any) -> int:
    """Width of a stream in columns, as ``make_console`` determines it."""
    return _columns(stream) or shutil.get_terminal_size().columns


def print_styled(lines: Iterable[Sequence[tuple[str, str]]]) -> None:
    """Print lines of words with styles ("bold", "bold cyan", "dim" or none) to standard output, without rich."""
    terminal = can_redraw(sys.stdout) and (sys.platform != "win32" or "WT_SESSION" in os.environ)
    coloured = (terminal or "FORCE_COLOR" in os.environ) and not os.environ.get("NO_COLOR")
    codes = {"bold": "1", "bold cyan": "1;36", "dim": "2"} if coloured else {}
    with _writing():
        for line in lines:
            words = (f"\x1b[{codes[style]}m{word}\x1b[0m" if style in codes else word for word, style in line)
            print(" ".join(words).rstrip())
        sys.stdout.flush()


def print_line(console: Console, line: str) -> None:
    """Print a line as it is; the terminal wraps it."""
    console.print(line, soft_wrap=True, markup=False)


def plain_table(*left: str, right: Sequence[str] = (), **options: Any) -> Table:
    """A table without lines, by the titles of its columns; those of ``right`` are aligned to the right."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False, **options)
    for title in left:
        table.add_column(title)
    for title in right:
        table.add_column(title, justify="right")
    return table


def fitted(console: Console, table: Table) -> RenderableType:
    """A table, or its cells line by line if the console is too narrow, so that no value is cut."""
    from rich.cells import cell_len
    from rich.text import Text

    least, most = [], []  # width of the longest word and of the longest line of each column
    for column in table.columns:
        lines_of = [line for cell in (column.header, *column.cells) for line in _plain(cell).split("\n")]
        words = lines_of if column.no_wrap else [word for line in lines_of for word in line.split()]
        least.append(max(map(cell_len, words), default=0))
        most.append(max(map(cell_len, lines_of)))
    unbounded = console.options.update(width=_UNBOUNDED)
    for column, width in zip(table.columns, most, strict=True):
        column.width = width
    room = console.width - (console.measure(table, options=unbounded).maximum - sum(most))  # without the gaps
    if sum(least) <= room:
        # Only the widest columns are wrapped; rich would also cut words of others.
        limit = next(limit for limit in range(max(most), -1, -1) if sum(_within(limit, least, most)) <= room)
        for column, width in zip(table.columns, _within(limit, least, most), strict=True):
            column.width = width
        return table
    columns = [
        (" ".join(_plain(column.header).split()), [_plain(cell) for cell in column.cells]) for column in table.columns
    ]
    widest = max(len(header) for header, _ in columns[1:])
    lines = Text()
    for row in range(table.row_count):
        heading, *values = [(header, cells[row]) for header, cells in columns]
        filled = [(header, value) for header, value in values if value.strip()]
        lines.append(f"{heading[1].rstrip()}\n", style="" if filled else "bold")
        for header, value in filled:
            lines.append(f"    {header:<{widest}}  {value.strip()}\n")
    lines.rstrip()
    return lines


def _within(limit: int, least: Sequence[int], most: Sequence[int]) -> list[int]:
    """Widths of columns of which none is wider than ``limit``, unless a word of it is."""
    return [min(longest, max(word, limit)) for word, longest in zip(least, most, strict=True)]


def _plain(cell: Any) -> str:
    from rich.text import Text

    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _broken_pipe() -> None:
    """Exit with ``EXIT_SIGPIPE``, because the reader of the result has closed the pipe."""
    discard(sys.stdout)
    raise typer.Exit(EXIT_SIGPIPE)


def _nobody_listens() -> None:
    """Discard further output, so that a run continues after the reader of its progress has closed the pipe."""
    discard(sys.stderr)


def _say_plainly(text: str, end: str = "\n") -> None:
    try:
        print(text, file=sys.stderr, end=end, flush=True)
    except BrokenPipeError:
        _nobody_listens()


def can_redraw(stream: Any) -> bool:
    """Whether the stream is a terminal on which lines can be overwritten."""
    return bool(stream.isatty()) and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class _UnwritableOutputError(Exception):
    """Standard output cannot be written, for instance because the disk is full."""


@contextmanager
def _writing() -> Iterator[None]:
    """A context manager in which a closed pipe and unwritable output raise errors that differ from all others."""
    try:
        yield
    except BrokenPipeError:
        _broken_pipe()
    except OSError as error:
        raise _UnwritableOutputError(error.strerror or str(error)) from None


def _show_failure(error: Exception, *, traceback_shown: bool) -> int:
    """Show an error and return its exit code."""
    if isinstance(error, MaeError):
        show_error(error)
        return error.exit_code
    if isinstance(error, _UnwritableOutputError):
        discard(sys.stdout)
        show_error(MaeError(f"cannot write the result: {error}"))
    elif is_out_of_memory(error):
        show_error(MaeError("out of memory", hint="smaller images, a smaller model or a smaller batch take less"))
    elif advice := advice_on_gpu(error):
        show_error(MaeError(f"the GPU cannot be used: {first_line(error)}", hint=advice))
    elif isinstance(error, OSError) and error.filename is not None:
        show_error(MaeError(f"{error.filename}: {error.strerror}"))
    else:
        _show_bug(error, traceback_shown=traceback_shown)
    return MaeError.exit_code


def _show_traceback(error: BaseException) -> None:
    import traceback

    _say_plainly("".join(traceback.format_exception(error)), end="")


def _show_bug(error: Exception, *, traceback_shown: bool) -> None:
    """Show an internal error in one line, and write the traceback to a file, since it may not be reproducible."""
    import traceback
    from pathlib import Path

    where = "what is above" if traceback_shown else _write_traceback(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    show_error(
        MaeError(
            f"{type(error).__name__}: {first_line(error)} ({Path(at.filename).name}, line {at.lineno})",
            hint=f"this is a bug in maecli, not in what you did: please report {where} and what `maecli doctor` says",
        )
    )


def _write_traceback(error: Exception) -> str:
    """Write the traceback to a file, or print it if no file can be written; return where it is, as text."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="maecli-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        _show_traceback(error)
        return "what is above"
    return file.name


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", at most {peak / 2**20:,.0f} MiB of memory"


def _say(kind: str, style: str, message: str) -> None:
    from rich.text import Text

    text = Text.assemble((f"{kind}: ", style), shown(message))
    make_console(sys.stderr).print(text, soft_wrap=True)


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_document(result: Any) -> dict[str, Any]:
    """The fields of a use case's result as JSON values: paths become text, skipped files objects with the reason."""
    document: dict[str, Any] = {field.name: _plain_value(getattr(result, field.name)) for field in fields(result)}
    for name in ("skipped", "unreadable"):
        if isinstance(document.get(name), list):
            document[name] = [{"path": path, "reason": reason} for path, reason in document[name]]
    return document


def _plain_value(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain_value(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
