"""``maecli replay FILE``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mae.io.text import shown
from mae.training.config import ReplayConfig
from maecli.options import command_from
from maecli.output import Output, fitted, print_line

if TYPE_CHECKING:
    from rich.console import Console

    from mae.training.replay import Replay

FILES_SHOWN = 8


@command_from(ReplayConfig)
def replay(config: ReplayConfig, output: Output) -> None:
    """Re-run the training step that produced a non-finite loss or gradient, and find the module it came from.

    Examples:
      maecli replay run/replay.pth

      maecli replay run/replay.pth --device cpu --json
    """
    from mae.training.replay import replay as use_case

    result = use_case(config)
    output.result(lambda: dataclasses.asdict(result), lambda console: _show(console, result), _verdict(result))


def _show(console: Console, result: Replay) -> None:
    from rich.table import Table

    console.print(f"step {result.step}, lr {result.lr:.3g}: the run had a loss of {result.loss}")
    table = Table("precision", "loss", "gradient norm", "non-finite gradients", "first non-finite module")
    for one in result.passes:
        table.add_row(
            one.precision, f"{one.loss:.4g}", f"{one.grad_norm:.4g}", str(one.bad_gradients), one.first_module or "none"
        )
    console.print(fitted(console, table))
    files = ", ".join(map(shown, result.files[:FILES_SHOWN])) + (", ..." if len(result.files) > FILES_SHOWN else "")
    print_line(console, f"images: {files}")
    print_line(console, _verdict(result))


def _verdict(result: Replay) -> str:
    failed = {one.precision for one in result.passes if one.bad_gradients or one.first_module}
    if not failed:
        return "the step is finite here: the cause is the device it ran on, or an earlier kernel"
    if "fp32" in failed:
        return "it is non-finite in fp32 too: training has diverged; use a lower learning rate, or --on-nan rollback"
    return f"it is non-finite in {', '.join(sorted(failed))} only: use --precision fp32"
