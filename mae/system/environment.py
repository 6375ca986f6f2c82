"""The hardware and software of a run: processor, memory, GPUs, versions. Most functions do not load torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mae

ENVIRONMENT_FILE = "environment.json"

# Processor features that affect the speed of matrix products, by their names in /proc/cpuinfo.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
PACKAGES = (
    "torch", "torchvision", "numpy", "pillow", "simplejpeg", "safetensors", "pyarrow", "tensorboard", "timm",
    "transformers", "typer", "rich", "filelock", "jinja2",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
    """Properties of the machine that can be read without torch; unknown ones are None.

    Attributes:
        system: Operating system and architecture.
        processor: Name of the processor model.
        features: Processor features that affect the speed of matrix products.
        cores: Number of cores of the machine.
        usable_cores: Number of cores that this process may use, by its affinity and its control group.
        memory_bytes: Memory of the machine, or the limit of the control group if that is less.
    """

    system: str
    processor: str
    features: tuple[str, ...]
    cores: int | None
    usable_cores: float | None
    memory_bytes: int | None


def machine() -> Machine:
    """Read the machine's properties; takes milliseconds."""
    return Machine(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=processor_name(),
        features=cpu_features(),
        cores=os.cpu_count(),
        usable_cores=usable_cores(),
        memory_bytes=memory_bytes(),
    )


def processor_name() -> str:
    """Name of the processor model."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Processor features that affect the speed of matrix products; empty if they are unknown."""
    there = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return tuple(name for name in _FEATURES if name in there)


def usable_cores() -> float | None:
    """Number of cores that this process may use, by its affinity and its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _cgroup_quota()
    return quota if count is None or (quota is not None and quota < count) else float(count)


def memory_bytes() -> int | None:
    """Memory of the machine, or the limit of the control group if that is less."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min([*sizes, *(limit for limit, _ in _memory_limits())], default=None)


def available_memory() -> int | None:
    """Free memory in bytes, within the machine's memory and the limits of the control groups.

    Cached files count as free, because the kernel frees this memory when it is needed.
    """
    sizes = [limit - used for limit, used in _memory_limits()]
    with contextlib.suppress(OSError, ValueError, IndexError):
        sizes.append(int((PROC / "meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024)
    return max(0, min(sizes)) if sizes else None


def packages() -> dict[str, str | None]:
    """Versions of the packages in ``PACKAGES``, None if not installed; the packages are not imported."""
    versions = {name: _version(name) for name in PACKAGES}
    if versions["torch"] is not None:
        versions["torch"] = torch_build()
    return versions


@functools.cache  # it reads the whole description of a package
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_build() -> str | None:
    """Torch's version with its build, for instance 2.14.1+cu130, read from its files; torch is not loaded."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    written = re.search(r"__version__ = '([^']+)'", text)
    return written[1] if written else importlib.metadata.version("torch")


def graphics_at_a_glance() -> str:
    """Name of the GPU according to its driver's files; empty if there seems to be none. Torch may not support it.

    Neither torch nor nvidia-smi is used, because they take seconds.
    """
    cards = []
    for card in sorted((PROC / "driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            lines = card.read_text(errors="replace").splitlines()
            cards += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    if cards:
        return ", ".join(cards)
    if (PROC / "driver/nvidia/version").exists() or Path("/dev/nvidia0").exists():
        return "an NVIDIA GPU"
    if Path("/dev/kfd").exists():
        return "an AMD GPU"
    return "an Apple GPU" if sys.platform == "darwin" and platform.machine() == "arm64" else ""


def environment() -> dict[str, Any]:
    """The hardware and versions that affect a run's speed and results, as plain values. Loads torch."""
    import torch

    return {
        "maecli": mae.__version__,
        "python": platform.python_version(),
        **dataclasses.asdict(machine()),
        "gpus": graphics_cards(),
        "threads": torch.get_num_threads(),
        "packages": {name: version for name, version in packages().items() if version is not None},
    }


def graphics_cards() -> list[dict[str, Any]]:
    """Name and memory of every GPU that torch sees. Loads torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {"name": card.name, "memory_bytes": card.total_memory, "capability": f"{card.major}.{card.minor}"}
        for card in cards
    ]


def _cpuinfo(field: str) -> str:
    """Value of a field of /proc/cpuinfo for the first processor; empty if there is none."""
    with contextlib.suppress(OSError), (PROC / "cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def _cgroup_quota() -> float | None:
    """CPU limit of the control group, in cores; None if there is no limit or it cannot be read."""
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
            words = (CGROUP / quota_file).read_text().split()
            words += (CGROUP / period_file).read_text().split() if period_file else []
            quota = float(words[0]) / float(words[1])  # "max" means no limit
            if quota > 0:
                return quota
    return None


def _memory_limits() -> Iterator[tuple[int, int]]:
    """The memory limit and the used memory of each control group of this process, in bytes."""
    kinds = (
        ("", ("memory.max", "memory.high"), "memory.current", "inactive_file"),
        ("memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_files, usage_file, cached in kinds:
        for group in _control_groups(controller):
            for limit_file in limit_files:
                with contextlib.suppress(OSError, ValueError):  # "max" means no limit
                    limit, used = int((group / limit_file).read_text()), 0
                    with contextlib.suppress(OSError, ValueError):
                        used = int((group / usage_file).read_text())
                        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                        used -= int(counts.get(cached, 0))
                    yield limit, max(0, used)


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of the groups that contain it.

    Args:
        controller: Name of a controller of cgroup version 1; "" for version 2, which has one hierarchy for all.
    """
    root, own = CGROUP / controller, Path()
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                own = Path(path.strip("/"))
    # In a container the path may be that of the host; then only the root exists, which is the container's own group.
    for folder in (own, *own.parents):
        if ".." not in folder.parts:
            yield root / folder
