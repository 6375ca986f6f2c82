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
        "The checkpoint: a file, a run's folder, or a released file's name.",
        positional=True,
        metavar="CKPT",
        official=("model", "resume"),
    )
    to: str = option(
        dataclasses.MISSING,
        "official (.pth for the official scripts), encoder (the same without decoder), timm, hf (a folder for "
        "transformers) or safetensors (official names).",
        choices=TARGETS,
        metavar="TARGET",
    )
    out: Path | None = option(None, "Where to write.", default_text="beside the checkpoint", official=("output_dir",))
    num_heads: int | None = option(None, "Heads of the encoder.", low=1, default_text="the usual")
    decoder_num_heads: int | None = option(None, "Heads of the decoder.", low=1, default_text="the usual")
    offline: bool = option(False, "Download nothing.", flags="--offline")
