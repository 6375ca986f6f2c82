"""Choice of the device and the precision."""

from __future__ import annotations

import dataclasses

import torch

from mae.errors import ConfigError
from mae.system.distributed import Ranks
from mae.system.precision import choose_precision
from mae.system.products import product_times

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Computing:
    """Device and precision of a computation.

    Attributes:
        reason: Why ``auto`` is this precision; None if it was given.
    """

    device: torch.device
    precision: str
    reason: str | None = None


def settle(device: str, precision: str, ranks: Ranks | None = None) -> Computing:
    """Resolve ``auto``, and join the other processes, which all use the first one's precision, since timings vary.

    Raises:
        ConfigError: There is no such device, or it lacks the precision.
    """
    ranks = ranks or Ranks()
    found = resolve_device(device, None if ranks.alone else ranks.local_rank)
    resolved = resolve_precision(precision, found)
    reason = precision_reason(found, resolved) if precision == "auto" else None
    ranks.join(found)
    return Computing(found, *ranks.gather((resolved, reason))[0])


def resolve_device(name: str, index: int | None = None) -> torch.device:
    """Resolve a device name; ``auto`` is cuda if available, else mps, else the CPU.

    A cuda device always has an index: process groups require it, and devices with and without index compare unequal.

    Args:
        name: "auto", "cuda", "mps" or "cpu".
        index: Number of the GPU on this machine; None for the current one.

    Raises:
        ConfigError: This machine or this build of torch does not have the named device.
    """
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in have.items() if there)
    if not have.get(name, False):
        there = ", ".join(device for device, ok in have.items() if ok)
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds none here; there is {there}")
    if name == "cpu":
        return torch.device(name)
    gpus = torch.cuda.device_count() if name == "cuda" else 1
    if index is not None and index >= gpus:
        raise ConfigError(
            f"process {index} of this machine has no GPU: there {'is' if gpus == 1 else 'are'} {gpus}",
            hint="start as many processes as GPUs, or give --device cpu",
        )
    if name == "mps":
        return torch.device(name)
    if index is None:  # the current device, if the calling program uses CUDA already; else the first one
        index = torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    return torch.device(name, index)


def resolve_precision(name: str, device: torch.device) -> str:
    """Resolve ``auto`` on this machine's device by ``mae.system.precision.choose_precision``.

    On a CPU, matrix products in both precisions are timed, once per process. Timings vary, so the processes of a run,
    and a resumed run, must all use one result.

    Raises:
        ConfigError: ``name`` is fp16 and the device is a CPU.
    """
    return choose_precision(name, device.type, native_bf16=name == "auto" and _multiplies_bf16(device))


def precision_reason(device: torch.device, precision: str) -> str:
    """The reason why ``auto`` is this precision on this device, as text."""
    if device.type == "cpu":
        return str(product_times())
    if device.type == "cuda":
        return (
            "the GPU multiplies in bf16"
            if precision == "bf16"
            else "the GPU has no bf16; fp16 is faster, if the loss stays finite"
        )
    return "bf16 is not taken on this device"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision: matrix products in bf16 or fp16, weights, norms and the loss in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def _multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones, without emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return product_times().precision == "bf16"
    return False
