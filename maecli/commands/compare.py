"""``maecli compare --official CKPT``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from mae.comparison.config import CompareConfig
from mae.config import format_size
from mae.io.text import a_few, shown
from maecli.options import command_from
from maecli.output import Output, as_document, fitted, plain_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from mae.comparison.files import FilesReport
    from mae.comparison.run import CompareResult, Computation, FileReport
    from mae.comparison.stages import StageDifference

_MOST_TENSORS = 12  # differing tensors that are listed
_BAR = 7  # characters of a full bar


@command_from(CompareConfig)
def compare(config: CompareConfig, output: Output) -> None:
    """Check a checkpoint, and this implementation, against a reference implementation stage by stage.

    The exit code is 0 if nothing differs (suspicious weights are reported), 1 if something differs, 4 if the file
    cannot be read.

    Examples:
      maecli compare --official mae_visualize_vit_base.pth

      maecli compare --official facebook-vit-mae-base/model.safetensors --reference transformers

      maecli compare --official before.pth --checkpoint after.pth --image cat.jpg --out both.png
    """
    from mae.checkpoints.hub import announce_downloads
    from mae.comparison.run import compare as use_case

    with announce_downloads(output.download), output.steps() as on_step:
        result = use_case(config, on_step)
    for report in (result.official, result.checkpoint):
        for note in (*report.notes, *report.weights.notes) if report else ():
            output.note(note)
    output.show(
        result, _show, result.verdict.split(":")[0], lambda result: {"equal": result.equal} | as_document(result)
    )
    if not result.equal:
        raise typer.Exit(1)


def _show(console: Console, result: CompareResult) -> None:
    from rich.markup import escape

    console.print(fitted(console, _files_table([report for report in (result.official, result.checkpoint) if report])))
    console.print()
    console.print(fitted(console, _groups_table(result.official)))
    if result.computations:
        console.print()
        console.print(fitted(console, _stages_table(result.computations)))
    if result.files is not None:
        console.print()
        for part in _between_files(console, result.files):
            console.print(part)
    if result.between is not None:
        console.print()
        console.print(fitted(console, _stages_table((result.between,))))
    if result.out is not None:
        console.print(f"wrote {escape(shown(result.out))}", soft_wrap=True)
    console.print()
    for problem in result.problems:
        console.print(f"[red]✗[/red] {escape(shown(problem))}", soft_wrap=True)
    for warning in result.warnings:
        console.print(f"[yellow]![/yellow] {escape(shown(warning))}", soft_wrap=True)
    console.print(f"[bold {'green' if result.equal else 'red'}]{escape(shown(result.verdict))}", soft_wrap=True)


def _files_table(reports: list[FileReport]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), pad_edge=False, show_header=len(reports) > 1)
    table.add_column("")
    for report in reports:
        table.add_column(escape(shown(report.name)), overflow="fold")
    rows: dict[str, Callable[[FileReport], str]] = {
        "file": lambda report: shown(report.name),
        "kind": lambda report: f"{report.kind}, {report.dialect} names",
        "variant": lambda report: report.variant or "no published one",
        "encoder": lambda report: f"{report.encoder} (width/blocks/heads{_assumed(report, 'num_heads')})",
        "decoder": lambda report: f"{report.decoder or 'none'}{_assumed(report, 'decoder_num_heads')}",
        "image": lambda report: (
            f"{format_size(report.image_size)}, patches of {report.patch_size}, {report.in_chans} channels"
        ),
        "predicts": lambda report: report.target,
        "parameters": lambda report: f"{report.parameters:,}",
        "precision": lambda report: report.weights.precision,
        "tensors": lambda report: (
            f"{report.weights.matched} matched, {len(report.weights.missing)} missing, "
            f"{len(report.weights.unexpected)} unexpected, {len(report.weights.misshapen)} of another shape"
        ),
        "tables": lambda report: "; ".join(f"{name}: {what}" for name, what in report.weights.tables),
    }
    for name, cell in rows.items():
        if name != "file" or len(reports) == 1:
            table.add_row(f"[dim]{name}[/dim]", *(escape(cell(report)) for report in reports))
    return table


def _assumed(report: FileReport, name: str) -> str:
    return ", heads assumed" if name in report.assumed else ""


def _groups_table(report: FileReport) -> Table:
    table = plain_table("part", right=("tensors", "parameters", "rms", "largest"))
    for group in report.weights.groups:
        table.add_row(
            group.name, str(group.tensors), f"{group.parameters:,}", f"{group.rms:.3g}", f"{group.largest:.3g}"
        )
    return table


def _stages_table(computations: tuple[Computation, ...]) -> Table:
    """One row per stage: the first computation in full, with bars for the error, the others abbreviated."""
    from rich.table import Table

    first, others = computations[0], computations[1:]
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("stage", no_wrap=True)
    table.add_column("largest", justify="right")
    table.add_column(f"relative\nto {first.reference}", justify="right")
    table.add_column("growth", no_wrap=True)
    for one in others:
        precision = f"\n{one.precision}" if one.precision != first.precision else "\n"
        table.add_column(f"{one.reference}{precision}", justify="right")
    by_name = [{stage.name: stage for stage in one.stages} for one in others]
    most = max((stage.relative for stage in first.stages if math.isfinite(stage.relative)), default=0.0)
    for stage in first.stages:
        cells = [
            _relative(found[stage.name], one) if stage.name in found else ""
            for found, one in zip(by_name, others, strict=True)
        ]
        bar = _bar(stage.relative, most, first.tolerance)
        table.add_row(stage.name, _number(stage.largest), _relative(stage, first), bar, *cells)
    table.add_section()
    tolerances = [f"[dim]{one.tolerance:.0e}[/dim]" for one in computations]
    table.add_row("[dim]tolerance[/dim]", "", tolerances[0], "", *tolerances[1:])
    return table


def _number(value: float) -> str:
    return "–" if math.isinf(value) else f"{value:.1e}"


def _relative(stage: StageDifference, computation: Computation) -> str:
    text = "missing" if math.isinf(stage.largest) else f"{stage.relative:.1e}"
    return text if stage.relative <= computation.tolerance else f"[red]{text}[/red]"


def _bar(relative: float, most: float, tolerance: float) -> str:
    """A bar whose length is relative to the largest finite error of all stages."""
    share = 1.0 if math.isinf(relative) else relative / most if most else 0.0
    bar = "█" * math.floor(share * _BAR) + ("▌" if share * _BAR % 1 >= 0.5 else "")
    return bar if relative <= tolerance else f"[red]{bar or '▏'} ✗[/red]"


def _between_files(console: Console, files: FilesReport) -> list[RenderableType]:
    from rich.markup import escape

    lines: list[RenderableType] = [f"{files.equal} tensors are the same in both files, {len(files.differing)} differ"]
    for names, which in ((files.only_first, "first"), (files.only_second, "second")):
        if names:
            lines.append(f"only in the {which} file ({len(names)}): {escape(a_few(names))}")
    if files.differing:
        table = plain_table("differing tensor", right=("largest", "relative"))
        table.add_column("")
        for tensor in files.differing[:_MOST_TENSORS]:
            why = "rounding" if tensor.rounding else ""
            relative = "other shape" if math.isinf(tensor.largest) else f"{tensor.relative:.1e}"
            table.add_row(escape(shown(tensor.name, 80)), _number(tensor.largest), relative, why)
        lines.append(fitted(console, table))
    if len(files.differing) > _MOST_TENSORS:
        lines.append(f"... and {len(files.differing) - _MOST_TENSORS} more (--json lists all)")
    return lines
