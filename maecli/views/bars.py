"""Bar charts of characters that show the parts of a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = ("cyan", "magenta", "green", "red")  # colours that are readable on black and on white
_FILLINGS = "█▓▒░"
_LONGEST_BAR = 60


def bars(console: Console, title: str, names: Sequence[str], wholes: Mapping[str, Sequence[int]]) -> list[Text]:
    """A legend, and for each whole a bar of equal length with its parts in percent.

    Args:
        console: The console, whose width limits the bars.
        title: Title of the legend.
        names: Names of the parts, at most four.
        wholes: Name of each whole -> sizes of its parts.
    """
    legend = Text(title, style="bold")
    for filling, colour, name in zip(_FILLINGS, _COLOURS, names, strict=False):
        legend.append(f"   {filling} ", style=f"not bold {colour}").append(name, style="not bold")
    lines = [legend]
    for whole, parts in wholes.items():
        percents = "/".join(f"{part / sum(parts):.0%}".rstrip("%") for part in parts)
        length = max(1, min(_LONGEST_BAR, console.width - len(percents) - 15))
        line = Text(f"  {whole:<10} ")
        for cells, filling, colour in zip(_cells(parts, length), _FILLINGS, _COLOURS, strict=False):
            line.append(filling * cells, style=colour)
        lines.append(line.append(f" {percents}%"))
    return lines


def _cells(parts: Sequence[int], length: int) -> list[int]:
    """Number of characters of each part; the sum is exactly ``length``."""
    whole, done, drawn, cells = sum(parts), 0, 0, []
    for part in parts:
        done += part
        end = round(done / whole * length)
        cells.append(end - drawn)
        drawn = end
    return cells
