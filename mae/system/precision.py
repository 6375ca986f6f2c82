"""Which precision a device computes in: the one decision that plans and training share. Standard library only.

Training asks with what it timed on the processor it has (``system.products``), a plan with what is known of one
without loading torch.
"""

from __future__ import annotations

from collections.abc import Collection

from mae.errors import ConfigError

_CPU_BF16 = ("avx512_bf16", "amx_tile")  # as /proc/cpuinfo calls them


def choose_precision(wanted: str, device: str, *, native_bf16: bool) -> str:
    """``auto`` is bf16 where the hardware multiplies in it, else fp32.

    Never fp16: its range ends at 65504, so gradients have to be scaled and some steps are lost to the search for the
    scale. A user who wants its speed on a GPU without bf16 has to ask for it.

    Args:
        wanted: "auto", "fp32", "bf16" or "fp16".
        device: "cuda", "mps" or "cpu".
        native_bf16: Whether the device multiplies bf16 matrices faster than fp32 ones, without emulation.

    Raises:
        ConfigError: fp16 on a CPU, where training in it is neither fast nor safe.
    """
    if wanted == "auto":
        return "bf16" if native_bf16 else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU", hint="use fp32 or bf16 on a CPU")
    return wanted


def processor_has_bf16(features: Collection[str]) -> bool:
    """Whether a processor with these features, as ``system.environment.cpu_features`` names them, multiplies bf16.

    Other processors may do it too (on ARM they have other names), so this is for plans that may not load torch.
    """
    return any(feature in features for feature in _CPU_BF16)
