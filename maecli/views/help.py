"""``--help`` that never cuts the name of an option; in a narrow terminal each name has its own line.

It does not use rich, whose import would double the time of ``maecli --help``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from maecli.commands import SUMMARIES, Commands

Line = list[tuple[str, str]]  # (text, style) pairs, joined by spaces

_WIDEST_NAMES = 30
_NARROW = 70  # columns; with fewer, descriptions are printed below the names


class Command(TyperCommand):
    """A command whose help is printed by this module."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it."""
        _print_help(self, ctx)


class Group(TyperGroup):
    """The group of all commands, which are loaded on demand; its help is printed by this module."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self.commands: Any = Commands()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it."""
        _print_help(self, ctx, list(SUMMARIES.items()))


def _print_help(command: Any, ctx: Any, commands: Sequence[tuple[str, str]] = ()) -> None:
    from maecli.output import print_styled, width_of

    width = width_of(sys.stdout)
    lines: list[Line] = [[], *_wrapped([(command.get_usage(ctx), "bold")], width), []]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines += [*_paragraph(paragraph, width), []]
    if commands:
        lines += _section("Commands", [([(name, "bold cyan")], [(text, "")]) for name, text in commands], width)
    sections: dict[str, list[tuple[Line, Line]]] = {}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            sections.setdefault(panel, []).append((_name(parameter, argument=argument), _description(parameter)))
    for title in sorted(sections, key=lambda title: (title != "Arguments", title == "Options")):
        lines += _section(title, sections[title], width)
    print_styled(lines)


def _paragraph(paragraph: str, width: int) -> Iterator[Line]:
    """Lines of a paragraph: examples keep their line breaks, so that they can be copied; other text is wrapped."""
    texts = paragraph.splitlines()
    indented = any(text.startswith("  ") for text in texts)
    for text in texts if indented else [" ".join(paragraph.split())]:
        indent = len(text) - len(text.lstrip())
        yield from _wrapped([(text, "")], width, indent=indent)


def _name(parameter: Any, *, argument: bool) -> Line:
    metavar = parameter.metavar or ""
    if argument:
        return [(metavar or parameter.name.upper(), "bold cyan")]
    names = " / ".join(", ".join(names) for names in (parameter.opts, parameter.secondary_opts) if names)
    return [(names, "bold cyan"), *([(metavar, "")] if metavar else [])]


def _description(parameter: Any) -> Line:
    default = parameter.show_default
    return [(parameter.help or "", ""), *([(f"[default: {default}]", "dim")] if isinstance(default, str) else [])]


def _section(title: str, rows: Sequence[tuple[Line, Line]], width: int) -> Iterator[Line]:
    """Names beside descriptions; long names, and all names in a narrow terminal, above their descriptions."""
    yield from _wrapped([(title, "bold")], width)
    narrow = width < _NARROW
    lengths = [_length(name) for name, _ in rows if _length(name) <= _WIDEST_NAMES]
    widest = 0 if narrow else max(lengths, default=0)
    indent = 6 if narrow else 2 + widest + 2
    for name, text in rows:
        described = list(_wrapped(text, max(10 + indent, width - 1), indent=indent))
        if _length(name) <= widest and described:
            _, *first = described.pop(0)
            yield [(" ", ""), *name, (" " * (widest - _length(name)), ""), *first]
        else:
            yield from _wrapped(name, width, indent=2)
        yield from described
    yield []


def _length(line: Line) -> int:
    return len(" ".join(text for text, _ in line))


def _wrapped(pieces: Line, width: int, *, indent: int = 0) -> Iterator[Line]:
    """Wrap styled words to indented lines.

    A word that is longer than an indented line gets a line without indent; if it is still too long, it is broken.
    """
    room = max(1, width - indent)
    margin: Line = [(" " * (indent - 1), "")] * bool(indent)
    line, used = margin, 0
    for word, style in ((word, style) for text, style in pieces for word in text.split()):
        if used and used + 1 + len(word) > room:
            yield line
            line, used = margin, 0
        if len(word) > room:
            *whole, word = (word[start : start + width] for start in range(0, len(word), width))
            yield from ([(part, style)] for part in [*whole, word])
            continue
        line = [*line, (word, style)]
        used += len(word) + (used > 0)
    if used:
        yield line
