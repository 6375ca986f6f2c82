"""A profile as tables, with one column per variant, and bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mae.config import format_size
from mae.io.text import counted
from maecli.output import fitted
from maecli.views.bars import bars

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mae.profiling.measured import Timing
    from mae.profiling.memory import Fit
    from mae.profiling.run import ModuleCost, ProfileResult, VariantProfile

Part = TypeVar("Part")

_DEVICES = {"cuda": "a GPU (CUDA)", "mps": "an Apple GPU", "cpu": "a CPU"}
_GIGA = 1e9


def show_profile(console: Console, result: ProfileResult) -> None:
    """Draw all parts of the result."""
    parts: list[RenderableType] = [Text(line) for line in _conditions(result)]
    parts += [Text(), fitted(console, _Sheet(result).table), *_all_bars(console, result)]
    for one in result.variants:
        if one.modules:
            parts += [Text(), fitted(console, _module_table(one))]
    console.print(Group(*parts))


def _conditions(result: ProfileResult) -> list[str]:
    channels = "" if result.in_chans == 3 else f", {result.in_chans} channels"
    lines = [
        f"{format_size(result.image_size)} px{channels}, {result.mask_ratio:.0%} masked; "
        f"batch {result.batch_size}, {result.precision} on {_DEVICES[result.device]}"
    ]
    if result.machine is not None:
        machine = result.machine
        threads = f", {counted(machine.threads, 'thread')}" if machine.device == "cpu" else ""
        lines.append(
            f"measured on {machine.name}{threads}, torch {machine.torch}; its matrix products reach "
            f"{_rate(machine.matmul_flops)} in {machine.precision} (in brackets: share of that; error of the estimate)"
        )
    plan = next((one.plan for one in result.variants if one.plan), None)
    if plan is not None:
        basis = "the rate measured here" if plan.mfu is None else f"{plan.mfu:.0%} of its peak, an assumption"
        lines.append(
            f"plan: {plan.images:,} images x {plan.epochs:,} epochs on {plan.gpus} x {plan.accelerator} at {basis}"
        )
    return lines


class _Sheet:
    """A table with one column per variant."""

    def __init__(self, result: ProfileResult) -> None:
        self.result = result
        self.variants = result.variants
        self.table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        self.table.add_column("")
        for one in self.variants:
            self.table.add_column(one.variant, justify="right", no_wrap=True)
        self.parameters()
        self.compute()
        self.memory()
        self.fit()
        self.plan()
        self.measured()

    def section(self, title: str) -> None:
        if self.table.row_count:
            self.table.add_row()
        self.table.add_row(Text(title, style="bold"))

    def row(self, label: str, figure: Callable[[VariantProfile], str | None], *, style: str = "") -> None:
        figures = [figure(one) for one in self.variants]
        if any(figures):
            # Text instead of str, so that rich does not parse markup.
            self.table.add_row(Text(f"  {label}"), *(Text(figure or "-") for figure in figures), style=style)

    def rows(
        self, part: Callable[[VariantProfile], Part | None], figures: Mapping[str, Callable[[Part], str | None]]
    ) -> None:
        """Add a row for each value of an optional part of a profile; variants without the part show a dash."""
        parts = {one.variant: part(one) for one in self.variants}
        for label, figure in figures.items():

            def cell(one: VariantProfile, figure: Callable[[Part], str | None] = figure) -> str | None:
                there = parts[one.variant]
                return None if there is None else figure(there)

            self.row(label, cell)

    def parameters(self) -> None:
        self.section("Parameters, millions")
        self.row("encoder", lambda one: _millions(one.parameters.encoder))
        self.row("decoder", lambda one: _millions(one.parameters.decoder))
        self.row("total", lambda one: _millions(one.parameters.total), style="bold")
        self.row("trainable", lambda one: _millions(one.parameters.trainable))

    def compute(self) -> None:
        self.section("GFLOPs for an image")
        self.row("encoder, visible", lambda one: _giga(one.compute.encoder))
        self.row("decoder", lambda one: _giga(one.compute.decoder))
        self.row("forward", lambda one: _giga(one.compute.forward), style="bold")
        self.row("training step", lambda one: _giga(one.compute.training_step))
        self.row("step as in pretrain", lambda one: _giga(one.compute.own_training_step))
        self.row("encoder, all patches", lambda one: _giga(one.compute.whole_encoder))
        self.row("saving, no mask tokens", lambda one: f"{one.compute.saving:.2f}x")
        self.section("GMACs (1 MAC = 2 FLOPs)")
        self.row("forward", lambda one: _giga(one.compute.forward // 2))
        self.row("training step", lambda one: _giga(one.compute.training_step // 2))
        self.row("encoder, all patches", lambda one: _giga(one.compute.whole_encoder // 2))

    def memory(self) -> None:
        self.section(f"GB of memory, batch {self.result.batch_size}")
        self.row("weights", lambda one: _giga(one.training.weights))
        self.row("gradients", lambda one: _giga(one.training.gradients))
        self.row("AdamW's moments", lambda one: _giga(one.training.optimizer))
        self.row("activations", lambda one: _giga(one.training.activations))
        self.row("peak of training", lambda one: _giga(one.training.peak), style="bold")
        self.row("process, kept heap", _process)
        self.row(
            "whole process", lambda one: _giga(one.training_process) if one.training_process else None, style="bold"
        )
        self.row("peak, checkpointing", lambda one: _giga(one.checkpointed_training.peak))
        self.row("peak of features", lambda one: _giga(one.inference_peak))

    def fit(self) -> None:
        some = self.variants[0].fit
        if some is None:
            return
        self.section(f"Training in {some.memory_bytes / _GIGA:.4g} GB")
        self.rows(
            lambda one: one.fit,
            {
                "largest batch": _batch,
                "limited by": _limit,
                "batch x accumulated": lambda fit: f"{fit.batch_size} x {fit.accum_iter}" if fit.batch_size else None,
                "effective batch": lambda fit: f"{fit.effective_batch:,}" if fit.batch_size else None,
            },
        )
        self.rows(lambda one: one.checkpointed_fit, {"largest, checkpointing": _batch, "limited by": _limit})

    def plan(self) -> None:
        some = next((one.plan for one in self.variants if one.plan), None)
        if some is None:
            return
        self.section("Plan")
        self.rows(
            lambda one: one.plan,
            {
                "time": lambda plan: _span(plan.hours),
                "device hours": lambda plan: _figure(plan.gpu_hours),
                "images/s each": lambda plan: _figure(plan.images_per_second),
                "energy, kWh": lambda plan: _figure(plan.energy_kwh),
                "cost": lambda plan: _figure(plan.cost),
            },
        )

    def measured(self) -> None:
        if all(one.measured is None for one in self.variants):
            return
        self.section("Measured (spread)")
        rates = {"images/s": _images, "GFLOP/s": _speed}
        self.rows(lambda one: one.measured.latency if one.measured else None, {"features of one, ms": _latency})
        for title, timing in (
            ("features", lambda one: one.measured.encode),
            ("forward", lambda one: one.measured.forward),
            ("training", lambda one: one.measured.training_step),
        ):
            self.rows(timing, {f"{title}, {unit}": figure for unit, figure in rates.items()})
        self.row("peak of training, GB", lambda one: _peak(one.training.peak, one, "training_peak_bytes"))
        self.row("peak of features, GB", lambda one: _peak(one.inference_peak, one, "inference_peak_bytes"))
        process = {"whole process, GB": lambda found: _known_giga(found.training_process_bytes)}
        self.rows(lambda one: one.measured, process)


def _all_bars(console: Console, result: ProfileResult) -> list[Text]:
    compute = {one.variant: (one.compute.encoder, one.compute.decoder) for one in result.variants}
    memory = {
        one.variant: (one.training.weights, one.training.gradients, one.training.optimizer, one.training.activations)
        for one in result.variants
    }
    return [
        Text(),
        *bars(console, "Forward compute", ("encoder", "decoder"), compute),
        Text(),
        *bars(console, "Training memory", ("weights", "gradients", "AdamW", "activations"), memory),
    ]


def _module_table(one: VariantProfile) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, title_justify="left")
    table.add_column(f"{one.variant}, each", overflow="fold")
    for title in ("parameters", "GFLOPs", "GMACs", "share", "step GFLOPs"):
        table.add_column(title, justify="right")
    for name, module in _collapsed(one.modules):
        table.add_row(
            name,
            f"{module.parameters:,}",
            f"{module.forward / _GIGA:,.3f}",
            f"{module.forward / 2 / _GIGA:,.3f}",
            f"{module.forward / one.compute.forward:.1%}",
            f"{module.training_step / _GIGA:,.3f}",
        )
    return table


def _collapsed(modules: Sequence[ModuleCost]) -> list[tuple[str, ModuleCost]]:
    """Merge blocks of equal cost into one row, ``encoder.blocks.0-11``, with the cost of each of them."""
    groups: dict[tuple[str, int, int, int], list[ModuleCost]] = {}
    for module in modules:
        pattern = ".".join("*" if part.isdigit() else part for part in module.name.split("."))
        key = (pattern, module.parameters, module.forward, module.training_step)
        groups.setdefault(key, []).append(module)
    rows = []
    for (pattern, *_), members in groups.items():
        name = members[0].name
        if len(members) > 1:
            numbers = [next(part for part in one.name.split(".") if part.isdigit()) for one in members]
            name = pattern.replace("*", f"{numbers[0]}-{numbers[-1]}")
        rows.append((name, members[0]))
    return rows


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}"


def _giga(count: float) -> str:
    return f"{count / _GIGA:,.2f}"


def _figure(value: float | None) -> str | None:
    """A number with three significant digits."""
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(hours: float) -> str:
    if hours >= 48:
        return f"{_figure(hours / 24)} days"
    return f"{_figure(hours)} h" if hours >= 1 else f"{_figure(hours * 60)} min"


def _rate(flops: float) -> str:
    return f"{flops / 1e12:,.1f} TFLOP/s" if flops >= 1e13 else f"{flops / _GIGA:,.0f} GFLOP/s"


def _batch(fit: Fit) -> str:
    return f"{fit.largest_batch:,}" if fit.largest_batch else "none"


def _limit(fit: Fit) -> str:
    return "4096" if fit.limited_by == "recipe" else fit.limited_by


def _latency(timing: Timing) -> str:
    return f"{timing.seconds_median * 1e3:,.1f} ({_range(timing)})"


def _images(timing: Timing) -> str:
    return f"{_figure(timing.images_per_second)} ({_range(timing)})"


def _speed(timing: Timing) -> str:
    return f"{timing.achieved_flops / _GIGA:,.0f} ({timing.matmul_share:.0%})"


def _range(timing: Timing) -> str:
    return f"±{(timing.seconds_max - timing.seconds_min) / timing.seconds_median / 2:.0%}"


def _process(one: VariantProfile) -> str | None:
    """Memory other than a step's tensors: Python, torch, freed memory kept by the heap, the copy for saving."""
    return None if one.training_process is None else _giga(one.training_process - one.training.peak)


def _known_giga(size: int | None) -> str | None:
    return None if size is None else _giga(size)


def _peak(estimate: int, one: VariantProfile, name: str) -> str | None:
    """The measured peak, with the error of the estimate."""
    measured: int | None = getattr(one.measured, name, None)
    return f"{_giga(measured)} ({estimate / measured - 1:+.0%})" if measured else None
