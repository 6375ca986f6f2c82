"""``maecli export CKPT --to TARGET``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.exporting.config import GRAPHS, ExportConfig
from mae.io.text import shown
from maecli.options import command_from
from maecli.output import Output, as_document

if TYPE_CHECKING:
    from rich.console import Console

    from mae.exporting.run import ExportResult


@command_from(ExportConfig)
def export(config: ExportConfig, output: Output) -> None:
    """Convert a checkpoint for another tool, then verify that the tool computes the same outputs.

    Examples:
      maecli export run/checkpoint-last.pth --to timm

      maecli export run/checkpoint-last.pth --to hf --out my-vit-mae

      maecli export mae_visualize_vit_base.pth --to encoder --out encoder.pth

      maecli export run/checkpoint-last.pth --to onnx --dtype fp16
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.exporting.run import export as use_case

    with announce_downloads(output.download), output.steps() as on_step:
        result = use_case(config, on_step)
    for note in result.notes:
        output.note(note)
    output.result(lambda: as_document(result), lambda console: _show(console, result), result.out)


def _show(console: Console, result: ExportResult) -> None:
    _say(
        console,
        f"wrote {shown(result.out)}: {result.tensors} tensors, {result.parameters:,} parameters, "
        f"{result.size_bytes / 1e6:,.1f} MB",
    )
    read_back = "" if result.to in GRAPHS else "every tensor reads back bit for bit, and "
    precision = result.dtype if result.to in GRAPHS else "float64"
    _say(
        console,
        f"checked: {read_back}{result.checked_by} computes the same {result.output} "
        f"(relative difference {result.difference:.1e} in {precision})",
    )
    if result.rounding is not None:
        how = "computing in" if result.to in GRAPHS else "rounding the weights to"
        _say(
            console,
            f"loss of accuracy: {how} {result.dtype} changes the {result.output} by {result.rounding:.2%} "
            "(relative to their norm, on random images)",
        )


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)
