"""Peak rates, memory and power of accelerators. Standard library only.

Each entry names the manufacturer's document with its numbers, and how they were checked (``Check``).

Rates are dense: a data sheet's figure "with sparsity" is twice that and no training reaches it. For
GeForce cards they are those with float32 accumulation, which is what PyTorch computes with.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re

from mae.errors import ConfigError

TERA = 10**12
GB = 10**9


class Check(enum.StrEnum):
    """How the numbers of an entry were checked."""

    DOCUMENT = "document"  # all of them read in a copy of the maker's text
    QUOTED = "quoted"  # the same figures where others quote the document or copy its table
    UNVERIFIED = "unverified"  # not found, or found with other figures elsewhere


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One accelerator.

    Attributes:
        name: Name on the command line.
        title: Name by the manufacturer.
        bf16, fp16, tf32, fp32: Peak dense matrix rate in TFLOP/s; None where it has none.
        memory_gb: In 10^9 bytes.
        watts: Thermal design power of the whole card or module.
        check: How bf16, fp16, fp32, memory and power were checked; tf32 is for comparison and in no plan.
        source: The maker's document with these figures.
    """

    name: str
    title: str
    bf16: float | None
    fp16: float
    tf32: float | None
    fp32: float
    memory_gb: int
    watts: int
    check: Check
    source: str

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return self.memory_gb * GB

    def peak_flops(self, precision: str) -> float:
        """FLOP/s at ``fp32`` (without TF32, PyTorch's default), ``bf16`` or ``fp16``.

        Raises:
            ConfigError: It does not compute in that precision.
        """
        rate = {"fp32": self.fp32, "bf16": self.bf16, "fp16": self.fp16}[precision]
        if rate is None:
            raise ConfigError(
                f"--precision {precision}: {self.title} has no {precision} matrix units", hint="use --precision fp16"
            )
        return rate * TERA


_VOLTA = "NVIDIA V100 Tensor Core GPU data sheet"
_TURING = "NVIDIA T4 Tensor Core GPU data sheet"
_AMPERE_BLOG = "NVIDIA Ampere Architecture In-Depth (developer blog), table 3"
_AMPERE = "NVIDIA A100 Tensor Core GPU data sheet"
_A10 = "NVIDIA A10 Tensor Core GPU data sheet"
_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet"
_H200 = "NVIDIA H200 Tensor Core GPU data sheet"
_B200 = "NVIDIA HGX B200 data sheet, per GPU"
_L4 = "NVIDIA L4 Tensor Core GPU data sheet"
_L40S = "NVIDIA L40S GPU data sheet"
_GA102 = "NVIDIA Ampere GA102 GPU architecture white paper, table 3 and appendix A"
_AD102 = "NVIDIA Ada GPU architecture white paper, appendix A"
_GB202 = "NVIDIA RTX Blackwell GPU architecture white paper, table 3"
_CDNA3 = "AMD Instinct MI300X data sheet"

_READ, _QUOTED, _UNVERIFIED = Check.DOCUMENT, Check.QUOTED, Check.UNVERIFIED

ACCELERATORS: dict[str, Accelerator] = {
    accelerator.name: accelerator
    for accelerator in (
        #           name         title                     bf16    fp16   tf32   fp32   GB   W   check, source
        Accelerator("v100", "NVIDIA V100 SXM2 32GB", None, 125, None, 15.7, 32, 300, _READ, _AMPERE_BLOG),
        Accelerator("v100-pcie", "NVIDIA V100 PCIe 32GB", None, 112, None, 14, 32, 250, _QUOTED, _VOLTA),
        Accelerator("t4", "NVIDIA T4", None, 65, None, 8.1, 16, 70, _QUOTED, _TURING),
        Accelerator("a100-40gb", "NVIDIA A100 SXM 40GB", 312, 312, 156, 19.5, 40, 400, _READ, _AMPERE_BLOG),
        Accelerator("a100", "NVIDIA A100 SXM 80GB", 312, 312, 156, 19.5, 80, 400, _QUOTED, _AMPERE),
        Accelerator("a100-pcie", "NVIDIA A100 PCIe 80GB", 312, 312, 156, 19.5, 80, 300, _QUOTED, _AMPERE),
        Accelerator("a10", "NVIDIA A10", 125, 125, 62.5, 31.2, 24, 150, _QUOTED, _A10),
        Accelerator("a6000", "NVIDIA RTX A6000", 154.8, 154.8, 77.4, 38.7, 48, 300, _QUOTED, _GA102),
        Accelerator("h100", "NVIDIA H100 SXM", 989, 989, 494, 67, 80, 700, _QUOTED, _HOPPER),
        Accelerator("h100-pcie", "NVIDIA H100 PCIe", 756, 756, 378, 51, 80, 350, _QUOTED, _HOPPER),
        Accelerator("h200", "NVIDIA H200 SXM", 989, 989, 494, 67, 141, 700, _QUOTED, _H200),
        Accelerator("b200", "NVIDIA B200", 2250, 2250, 1125, 75, 180, 1000, _UNVERIFIED, _B200),
        Accelerator("l4", "NVIDIA L4", 121, 121, 60, 30.3, 24, 72, _QUOTED, _L4),
        Accelerator("l40s", "NVIDIA L40S", 362, 362, 183, 91.6, 48, 350, _QUOTED, _L40S),
        Accelerator("rtx3090", "NVIDIA GeForce RTX 3090", 71, 71, 35.6, 35.6, 24, 350, _QUOTED, _GA102),
        Accelerator("rtx4090", "NVIDIA GeForce RTX 4090", 165.2, 165.2, 82.6, 82.6, 24, 450, _QUOTED, _AD102),
        Accelerator("rtx5090", "NVIDIA GeForce RTX 5090", 209.5, 209.5, 104.8, 104.8, 32, 575, _QUOTED, _GB202),
        Accelerator("mi300x", "AMD Instinct MI300X", 1307, 1307, 654, 163.4, 192, 750, _UNVERIFIED, _CDNA3),
    )
}

_OTHER_NAMES = {
    "v100sxm2": "v100",
    "v10032gb": "v100",
    "a10080gb": "a100",
    "a100sxm": "a100",
    "h100sxm": "h100",
    "h100sxm5": "h100",
    "h10080gb": "h100",
    "h200sxm": "h200",
    "3090": "rtx3090",
    "4090": "rtx4090",
    "5090": "rtx5090",
}


def find_accelerator(name: str) -> Accelerator:
    """An accelerator by name; case, blanks, dashes and the maker's name do not matter.

    Raises:
        ConfigError: It is not in the table; near names are listed.
    """
    wanted = _plain(name)
    for known, accelerator in ACCELERATORS.items():
        if wanted in (_plain(known), _plain(accelerator.title)) or _OTHER_NAMES.get(wanted) == known:
            return accelerator
    near = difflib.get_close_matches(wanted, [_plain(known) for known in ACCELERATORS], n=3, cutoff=0.5)
    names = [known for known in ACCELERATORS if _plain(known) in near]
    raise ConfigError(
        f"--gpu {name}: not in the table; there are {', '.join(ACCELERATORS)}",
        hint=f"did you mean {' or '.join(names)}?" if names else None,
    )


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|amd|instinct|tesla|[^a-z0-9]", "", name.lower())
