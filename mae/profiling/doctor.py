"""Hardware, packages and likely problems of a machine. Loads torch only inside functions."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import locale
import os
import platform
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import mae
from mae.io.text import counted, first_line
from mae.options import option
from mae.system.environment import Machine, graphics_at_a_glance, graphics_cards, machine, packages

OLDEST_TORCH = (2, 11)
SPEED_VARIANT = "vit_tiny"
SPEED_BATCH = 8
_GIB = 2**30
_LITTLE_SHARED_MEMORY = _GIB // 2  # what loader processes pass batches through
_LITTLE_DISK = 2 * _GIB  # a base model's checkpoint with its optimiser has 1.3
_LITTLE_MEMORY = 4 * _GIB
_MATMUL_SIDES = {"cpu": 1024, "cuda": 8192, "mps": 2048}


@dataclasses.dataclass(frozen=True)
class DoctorConfig:
    """Settings of ``doctor``."""

    speed: bool = option(True, "Also measure matrix products and training steps; takes a few seconds.")


@dataclasses.dataclass(frozen=True)
class Speed:
    """Speed of the device that ``auto`` chooses.

    Attributes:
        matmul_fp32_flops, matmul_bf16_flops: FLOP/s of the fastest of some square matrix products.
        images_per_second: Of training steps, from the median, in the precision that ``auto`` takes.
    """

    matmul_fp32_flops: float
    matmul_bf16_flops: float
    variant: str
    batch: int
    precision: str
    images_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of ``doctor``; None for unknown or missing values.

    Attributes:
        packages: Installed versions; None is not installed.
        torch_failure: Why torch or torchvision cannot be loaded.
        device, precision: Choice of ``auto``.
        precision_reason: Reason for that precision.
        threads: Number of threads of torch on a CPU.
        encoding: Encoding of standard output and of file names.
        disk_free_bytes: Free space of the disk of the current folder.
        shared_memory_free_bytes: Free space of /dev/shm.
        warnings: Likely problems, each with what to do.
    """

    maecli: str
    python: str
    machine: Machine
    packages: dict[str, str | None]
    torch_failure: str | None
    gpus: tuple[dict[str, Any], ...] = ()
    device: str | None = None
    precision: str | None = None
    precision_reason: str | None = None
    threads: int | None = None
    locale: str
    encoding: str
    disk_free_bytes: int | None
    shared_memory_free_bytes: int | None
    speed: Speed | None = None
    warnings: tuple[str, ...] = ()


def examine(config: DoctorConfig) -> Diagnosis:
    """Examine the machine and optionally measure it. Problems are reported as warnings, not as errors."""
    found = Diagnosis(
        maecli=mae.__version__,
        python=platform.python_version(),
        machine=machine(),
        packages=packages(),
        torch_failure=_failure_to_load("torch") or _failure_to_load("torchvision"),
        locale=".".join(part or "C" for part in locale.getlocale()),
        encoding=f"{sys.stdout.encoding}, file names {sys.getfilesystemencoding()}",
        disk_free_bytes=_free(Path()),
        shared_memory_free_bytes=_free(Path("/dev/shm")),
    )
    warnings = []
    if found.torch_failure is None:
        found = _with_torch(found)
        if config.speed:
            try:
                found = dataclasses.replace(found, speed=_speed(str(found.device), str(found.precision)))
            except RuntimeError as error:
                warnings.append(f"the speed could not be measured: {_without_home(error)}")
    return dataclasses.replace(found, warnings=(*_warnings(found), *warnings))


def _failure_to_load(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken installation can raise anything
        return f"{module} cannot be loaded: {type(error).__name__}: {_without_home(error)}"
    return None


def _with_torch(found: Diagnosis) -> Diagnosis:
    import torch

    from mae.system.device import settle

    computing = settle("auto", "auto")
    return dataclasses.replace(
        found,
        gpus=tuple(graphics_cards()),
        device=computing.device.type,
        precision=computing.precision,
        precision_reason=computing.reason,
        threads=torch.get_num_threads(),
    )


def _speed(device_name: str, precision: str) -> Speed:
    import torch

    from mae.models import variant_config
    from mae.profiling.measuring import Subject, timed
    from mae.system.device import resolve_device

    device, side = resolve_device(device_name), _MATMUL_SIDES[device_name]

    def matmul_flops(dtype: torch.dtype) -> float:
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        return 2 * side**3 / min(timed(partial(torch.matmul, left, right), device, repeats=3))

    subject = Subject(
        {
            "device": device_name,
            "precision": precision,
            "mask_ratio": 0.75,
            "batch": SPEED_BATCH,
            "repeats": 3,
            "model": dataclasses.asdict(variant_config(SPEED_VARIANT)),
        }
    )
    seconds = sorted(timed(subject.training_step, device, subject.repeats))
    return Speed(
        matmul_fp32_flops=matmul_flops(torch.float32),
        matmul_bf16_flops=matmul_flops(torch.bfloat16),
        variant=SPEED_VARIANT,
        batch=SPEED_BATCH,
        precision=precision,
        images_per_second=SPEED_BATCH / seconds[len(seconds) // 2],
    )


def _warnings(found: Diagnosis) -> list[str]:
    """Likely problems, from what was found."""
    warnings = [found.torch_failure] if found.torch_failure else []
    version = re.match(r"(\d+)\.(\d+)", found.packages["torch"] or "")
    if version and (int(version[1]), int(version[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        warnings.append(f"torch {found.packages['torch']} is older than {oldest}: pip install -U 'torch>={oldest}'")
    seen = graphics_at_a_glance()
    if found.device == "cpu" and seen:
        warnings.append(f"there seems to be {seen}, but torch does not see it: a torch without GPU, or an old driver")
    cores, threads = found.machine.usable_cores, found.threads
    if found.device == "cpu" and cores and threads and threads != max(1, int(cores)):
        set_by = f" since OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS']}" if "OMP_NUM_THREADS" in os.environ else ""
        warnings.append(
            f"torch computes with {counted(threads, 'thread')} on {cores:g} usable cores{set_by}: OMP_NUM_THREADS="
            f"{max(1, int(cores))} may be faster"
        )
    if (found.device, found.precision) == ("cpu", "fp32"):
        warnings.append("no bf16 on this processor: training takes about twice as long as where there is")
    if found.speed and found.precision == "bf16" and found.speed.matmul_bf16_flops < found.speed.matmul_fp32_flops:
        warnings.append("bf16 was measured slower than fp32 here: try --precision fp32")
    small = found.shared_memory_free_bytes
    if small is not None and small < _LITTLE_SHARED_MEMORY:
        warnings.append(
            f"/dev/shm has {small / 2**20:,.0f} MiB free, and loader processes pass images through it: "
            "--workers 0, or docker run --shm-size=2g"
        )
    if found.disk_free_bytes is not None and found.disk_free_bytes < _LITTLE_DISK:
        warnings.append(f"{found.disk_free_bytes / _GIB:.1f} GiB free on the disk: checkpoints may not fit")
    if found.machine.memory_bytes is not None and found.machine.memory_bytes < _LITTLE_MEMORY:
        warnings.append(
            f"{found.machine.memory_bytes / _GIB:.1f} GiB of memory: --variant vit_tiny and small batches fit"
        )
    if found.packages["simplejpeg"] is None:
        warnings.append("simplejpeg is not installed: pip install 'maecli[fast]' decodes JPEGs about twice as fast")
    return warnings


def _free(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def _without_home(error: Exception) -> str:
    """A message's first line, without paths and names."""
    home = os.path.expanduser("~")  # noqa: PTH111 - without a home folder it stays as it is
    return first_line(error) if home == os.sep else first_line(error).replace(home, "~")
