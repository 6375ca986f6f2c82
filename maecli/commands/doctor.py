"""``maecli doctor``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import typer

from mae.profiling.doctor import Diagnosis, DoctorConfig
from maecli.options import command_from
from maecli.output import Output

if TYPE_CHECKING:
    from rich.console import Console


@command_from(DoctorConfig)
def doctor(config: DoctorConfig, output: Output) -> None:
    """Print hardware, installed packages, speed and likely problems of this machine, for a bug report.

    The output contains no user, home folder or host name. The exit code is 1 if torch cannot be loaded.

    Examples:
      maecli doctor

      maecli doctor --no-speed --json
    """
    from mae.profiling.doctor import examine

    found = examine(config)
    output.result(lambda: dataclasses.asdict(found), lambda console: _show(console, found), len(found.warnings))
    if found.torch_failure:
        raise typer.Exit(1)


def _show(console: Console, found: Diagnosis) -> None:
    width = max(map(len, lines := _lines(found)))
    for name, value in lines.items():
        console.print(f"{name:<{width}}  {value}", soft_wrap=True, markup=False)
    for warning in found.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    if not found.warnings:
        console.print("no problems found")


def _lines(found: Diagnosis) -> dict[str, str]:
    machine, speed = found.machine, found.speed
    installed = {name: version for name, version in found.packages.items() if version is not None}
    missing = [name for name, version in found.packages.items() if version is None]
    lines = {
        "maecli": found.maecli,
        "python": found.python,
        "system": machine.system,
        "processor": f"{machine.processor} {' '.join(machine.features)}",
        "cores": f"{machine.cores or 'unknown'}, usable {f'{machine.usable_cores:g}' if machine.usable_cores else '?'}",
        "threads": str(found.threads or "unknown"),
        "memory": _gib(machine.memory_bytes),
        "GPUs": ", ".join(f"{gpu['name']} ({_gib(gpu['memory_bytes'])})" for gpu in found.gpus) or "none",
        "device": found.device or "unknown",
        "precision": f"{found.precision}: {found.precision_reason}" if found.precision else "unknown",
        "installed": ", ".join(f"{name} {version}" for name, version in installed.items()),
        "not installed": ", ".join(missing) or "-",
        "locale": found.locale,
        "encoding": found.encoding,
        "disk free": _gib(found.disk_free_bytes),
        "/dev/shm free": _gib(found.shared_memory_free_bytes),
    }
    if speed is not None:
        lines["matrix products"] = (
            f"{speed.matmul_fp32_flops / 1e9:,.0f} GFLOP/s in fp32, {speed.matmul_bf16_flops / 1e9:,.0f} in bf16"
        )
        lines["training"] = (
            f"{speed.images_per_second:,.0f} images/s ({speed.variant}, 224 px, batch {speed.batch}, {speed.precision})"
        )
    return lines


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:,.1f} GiB"
