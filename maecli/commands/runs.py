"""``maecli runs FOLDER``."""

from __future__ import annotations

from mae.reporting.config import RunsConfig
from maecli.options import command_from
from maecli.output import Output


@command_from(RunsConfig)
def runs(config: RunsConfig, output: Output) -> None:
    """List the runs in a folder: how far each is, how good, and whether it is still training.

    Examples:
      maecli runs runs

      maecli runs . --sort loss --json
    """
    from mae.reporting.runs import runs as use_case
    from maecli.views.runs import runs_table

    result = use_case(config)
    paths = "\n".join(str(config.folder / one.run) for one in result.runs)
    output.show(result, lambda console, _: runs_table(console, result.runs), paths)
