"""Which checkpoint to export, and for whom. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.config import shared_option
from mae.options import option

TARGETS = ("official", "encoder", "timm", "hf", "safetensors")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Which file, written for whom."""

    checkpoint: Path = option(
        dataclasses.MISSING,
        "The checkpoint: a file, a run folder or a released name.",
        positional=True,
        metavar="CKPT",
        official=("model", "resume"),
    )
    to: str = option(
        dataclasses.MISSING,
        "Format: official (.pth for the official scripts), encoder (without the decoder), timm, hf (a folder for "
        "transformers) or safetensors (official names).",
        choices=TARGETS,
        metavar="TARGET",
    )
    out: Path | None = option(
        None, "Output file or folder.", default_text="beside the checkpoint", official=("output_dir",)
    )
    num_heads: int | None = shared_option("num_heads")
    decoder_num_heads: int | None = shared_option("num_heads", help="Attention heads of the decoder.")
    offline: bool = shared_option("offline")
