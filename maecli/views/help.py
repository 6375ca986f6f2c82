"""``--help`` that no width cuts: an option's name is always whole, on a line of its own where columns are few."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from maecli.commands import SUMMARIES, Commands

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

_WIDEST_NAMES = 30
_NARROW = 70  # columns; below that, descriptions go under the names


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it."""
        _print_help(self, ctx)


class Group(TyperGroup):
    """The group of all commands with this help; a command is loaded when it is wanted."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self.commands: Any = Commands()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print it."""
        _print_help(self, ctx, list(SUMMARIES.items()))


def _print_help(command: Any, ctx: Any, commands: Sequence[tuple[str, str]] = ()) -> None:
    from rich.console import Group as Lines
    from rich.text import Text

    from maecli.output import make_console

    console = make_console(sys.stdout)
    lines: list[RenderableType] = [Text(), Text(command.get_usage(ctx), style="bold"), Text()]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        lines += [_paragraph(paragraph), Text()]
    if commands:
        lines += _section("Commands", [(Text(name, style="bold cyan"), Text(text)) for name, text in commands], console)
    sections: dict[str, list[tuple[Text, Text]]] = {}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            sections.setdefault(panel, []).append((_name(parameter, argument=argument), _description(parameter)))
    for title in sorted(sections, key=lambda title: (title != "Arguments", title == "Options")):
        lines += _section(title, sections[title], console)
    console.print(Lines(*lines))


def _paragraph(paragraph: str) -> Text:
    """Examples keep their lines, so that they can be copied; other text flows."""
    from rich.text import Text

    indented = any(line.startswith("  ") for line in paragraph.splitlines())
    return Text(paragraph if indented else " ".join(paragraph.split()), overflow="fold")


def _name(parameter: Any, *, argument: bool) -> Text:
    from rich.text import Text

    metavar = parameter.metavar or ""
    if argument:
        return Text(metavar or parameter.name.upper(), style="bold cyan")
    names = " / ".join(
        [", ".join(parameter.opts), *([", ".join(parameter.secondary_opts)] * bool(parameter.secondary_opts))]
    )
    name = Text(names, style="bold cyan")
    return name.append(f" {metavar}", style="not bold default") if metavar else name


def _description(parameter: Any) -> Text:
    from rich.text import Text

    text = Text(parameter.help or "")
    if isinstance(parameter.show_default, str):
        text.append(f" [default: {parameter.show_default}]", style="dim")
    return text


def _section(title: str, rows: Sequence[tuple[Text, Text]], console: Any) -> Iterator[RenderableType]:
    """Names beside descriptions; a name that is too long, and in a narrow terminal every name, above its own."""
    from rich.text import Text

    yield Text(title, style="bold")
    narrow = console.width < _NARROW
    lengths = [name.cell_len for name, _ in rows if name.cell_len <= _WIDEST_NAMES]
    widest = 0 if narrow else max(lengths, default=0)
    indent = 6 if narrow else 2 + widest + 2
    for name, text in rows:
        described = list(text.wrap(console, max(10, console.width - indent - 1)))
        if name.cell_len <= widest and described:
            first = Text("  ").append_text(name)
            yield first.append(" " * (indent - first.cell_len)).append_text(described.pop(0))
        else:
            yield Text("  ", overflow="fold").append_text(name)
        for line in described:
            yield Text(" " * indent).append_text(line)
    yield Text()
