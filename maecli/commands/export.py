"""``maecli export CKPT --to TARGET``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mae.exporting.config import GRAPHS, ExportConfig
from mae.io.text import shown
from maecli.options import command_from
from maecli.output import Output, print_line

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
    output.show(result, _show, result.out)


def _show(console: Console, result: ExportResult) -> None:
    graph = result.to in GRAPHS
    print_line(
        console,
        f"wrote {shown(result.out)}: {result.tensors} tensors, {result.parameters:,} parameters, "
        f"{result.size_bytes / 1e6:,.1f} MB",
    )
    read_back = "" if graph else "every tensor reads back bit for bit, and "
    print_line(
        console,
        f"checked: {read_back}{result.checked_by} computes the same {result.output} "
        f"(relative difference {result.difference:.1e} in {result.dtype if graph else 'float64'})",
    )
    if result.rounding is not None:
        print_line(
            console,
            f"loss of accuracy: {'computing in' if graph else 'rounding the weights to'} {result.dtype} changes the "
            f"{result.output} by {result.rounding:.2%} (relative to their norm, on random images)",
        )
