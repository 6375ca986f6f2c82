"""Which checkpoint to export, and for whom. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

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
    num_heads: int | None = option(
        None, "Attention heads of the encoder.", low=1, default_text="from the checkpoint or the width"
    )
    decoder_num_heads: int | None = option(
        None, "Attention heads of the decoder.", low=1, default_text="from the checkpoint or the width"
    )
    offline: bool = option(False, "Never download anything.", flags="--offline")
