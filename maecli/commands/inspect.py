"""``maecli inspect DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.inspection.config import InspectConfig
from mae.io.text import shown
from maecli.options import command_from
from maecli.output import Output, plain_table, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.inspection.run import InspectResult

MOST_LISTED = 5  # groups of duplicates, and unreadable files


@command_from(InspectConfig)
def inspect(config: InspectConfig, output: Output) -> None:
    """Show what a data set holds: formats, channels, sizes, duplicates, unreadable files, a contact sheet.

    Examples:
      maecli inspect photos

      maecli inspect photos --report photos.html

      maecli inspect photos --sheet photos.jpg --decode 100000 --json
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.inspection.run import inspect as use_case

    with announce_downloads(output.download):
        result = use_case(config, lambda done, total: output.count(done, total, "images" if total else "files"))
    output.show(result, _show, result.images)


def _show(console: Console, result: InspectResult) -> None:
    from rich.text import Text

    table = plain_table(show_header=False)
    for title, value in result.rows():
        table.add_row(Text(title), Text(value))
    console.print(table)
    lines = [
        f"the same {group.files:,} times: {', '.join(shown(name) for name in group.names[:2])} ..."
        if group.files > 2
        else f"the same twice: {', '.join(shown(name) for name in group.names)}"
        for group in result.duplicate_groups[:MOST_LISTED]
    ]
    lines += [f"unreadable: {shown(path)}: {reason}" for path, reason in result.unreadable[:MOST_LISTED]]
    lines += [f"wrote {shown(path)}" for path in (result.sheet, result.report) if path]
    for line in lines:
        print_line(console, line)
