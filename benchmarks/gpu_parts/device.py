"""Operations on a device other than tensors: ``Gpu`` has those of CUDA, ``Host`` the same for a CPU.

Every call passes the device with its index, so that it does not depend on the current device.
"""

from __future__ import annotations

import contextlib
import gc
import platform
import subprocess
from typing import Any

import torch

from mae.system.device import resolve_device
from mae.system.environment import available_memory, processor_name

SMI_FIELDS = (
    "driver_version", "clocks.sm", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu", "memory.total",
)  # fmt: skip


class Host:
    """The CPU: nothing to wait for, and no count of what is allocated.

    Attributes:
        torch: The device as tensors name it.
    """

    is_gpu = False

    def __init__(self) -> None:
        self.torch = torch.device("cpu")

    def wait(self) -> None:
        """Return when all that was asked of the device is done."""

    def memory(self) -> int:
        """Bytes that could be allocated, if nothing else were."""
        return available_memory() or 2**30

    def allocated(self) -> int | None:
        """Bytes of all tensors; None where nobody counts."""
        return None

    def forget_peak(self) -> None:
        """Let ``peak`` begin here."""

    def peak(self) -> int | None:
        """The most bytes that tensors have taken."""
        return None

    def release(self) -> None:
        """Give back what was freed, so that another size can be allocated."""
        gc.collect()

    def facts(self) -> dict[str, Any]:
        """What it is."""
        return {"name": processor_name(), "system": platform.platform(), "threads": torch.get_num_threads()}

    def clocks(self) -> dict[str, str] | None:
        """Clock, power and temperature now; None where nobody tells."""
        return None


class Gpu(Host):
    """One CUDA device; counts are those of torch's allocator."""

    is_gpu = True

    def __init__(self) -> None:
        self.torch = resolve_device("cuda")
        torch.cuda.set_device(self.torch)

    def wait(self) -> None:
        """Also for what other streams do."""
        torch.cuda.synchronize(self.torch)

    def memory(self) -> int:
        """What is free now, and what this process holds."""
        free, _ = torch.cuda.mem_get_info(self.torch)
        return int(free) + torch.cuda.memory_reserved(self.torch)

    def allocated(self) -> int | None:
        """By torch."""
        return torch.cuda.memory_allocated(self.torch)

    def forget_peak(self) -> None:
        """The allocator's."""
        torch.cuda.reset_peak_memory_stats(self.torch)

    def peak(self) -> int | None:
        """The allocator's."""
        return torch.cuda.max_memory_allocated(self.torch)

    def release(self) -> None:
        """From the allocator's cache to the device."""
        gc.collect()
        torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """Of the device and the libraries that drive it."""
        properties = torch.cuda.get_device_properties(self.torch)
        facts: dict[str, Any] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "total_memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "host": {"processor": processor_name(), "system": platform.platform()},
        }
        with contextlib.suppress(Exception):  # a torch that was built without it has no such number
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        return facts

    def clocks(self) -> dict[str, str] | None:
        """As nvidia-smi tells them."""
        query = [
            "nvidia-smi",
            f"--query-gpu={','.join(SMI_FIELDS)}",
            "--format=csv,noheader",
            "-i",
            str(self.torch.index),
        ]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        values = [value.strip() for value in done.stdout.strip().split(",")]
        return dict(zip(SMI_FIELDS, values, strict=True)) if len(values) == len(SMI_FIELDS) else None


def open_device(name: str) -> Host:
    """``cuda`` or ``cpu``.

    Raises:
        ConfigError: There is no GPU.
    """
    return Gpu() if name == "cuda" else Host()
