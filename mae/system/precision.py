"""The rule for ``--precision auto``, shared by plans and training. Standard library only.

Training applies it to timings on its processor (``system.products``), a plan to features that are known without torch.
"""

from __future__ import annotations

from collections.abc import Collection

from mae.errors import ConfigError

_CPU_BF16 = ("avx512_bf16", "amx_tile")  # feature names of /proc/cpuinfo


def choose_precision(wanted: str, device: str, *, native_bf16: bool) -> str:
    """Resolve a precision: ``auto`` is bf16 if the hardware multiplies in it, else fp32.

    ``auto`` is never fp16: its range ends at 65504, so gradients need a loss scale, and some steps are skipped while
    the scale is searched. For its speed on a GPU without bf16, it must be requested.

    Args:
        wanted: "auto", "fp32", "bf16" or "fp16".
        device: "cuda", "mps" or "cpu".
        native_bf16: Whether the device multiplies bf16 matrices faster than fp32 ones, without emulation.

    Raises:
        ConfigError: fp16 was requested on a CPU, where it is slow and likely to overflow.
    """
    if wanted == "auto":
        return "bf16" if native_bf16 else "fp32"
    if wanted == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU", hint="use fp32 or bf16 on a CPU")
    return wanted


def processor_has_bf16(features: Collection[str]) -> bool:
    """Whether a processor with these features (named as by ``system.environment.cpu_features``) multiplies bf16.

    Other processors (ARM) may do so too under other names, so this is only for plans, which must not load torch.
    """
    return any(feature in features for feature in _CPU_BF16)
