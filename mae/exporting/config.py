"""Settings of ``export``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.config import shared_option
from mae.errors import ConfigError
from mae.io.text import shown
from mae.options import option

GRAPHS = ("onnx", "torch-export")  # formats that run without maecli
ENDINGS = {  # of the default names
    "official": "-official.pth",
    "encoder": "-encoder.pth",
    "timm": "-timm.safetensors",
    "hf": "-hf",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch-export": ".pt2",
}
TARGETS = tuple(ENDINGS)


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """Settings of ``export``."""

    checkpoint: Path = option(
        dataclasses.MISSING,
        "The checkpoint: a file, a run folder, builtin or a released name.",
        positional=True,
        metavar="CKPT",
        official=("model", "resume"),
    )
    to: str = option(
        dataclasses.MISSING,
        "Format: official (.pth for the official scripts), encoder (without the decoder), timm, hf (a folder for "
        "transformers), safetensors (official names); onnx or torch-export (.pt2) for a graph that needs no maecli.",
        choices=TARGETS,
        metavar="TARGET",
    )
    out: Path | None = option(
        None,
        "Output file or folder.",
        default_text="next to the checkpoint; for builtin the current folder",
        official=("output_dir",),
    )
    dtype: str | None = option(
        None,
        "Number format to write; the loss of accuracy is measured and printed.",
        choices=("fp32", "fp16", "bf16"),
        default_text="the checkpoint's",
    )
    num_heads: int | None = shared_option("num_heads")
    decoder_num_heads: int | None = shared_option("num_heads", help="Attention heads of the decoder.")
    offline: bool = shared_option("offline")

    def __post_init__(self) -> None:
        suffixes = {to: Path(f"name{ending}").suffix for to, ending in ENDINGS.items()}
        given, own = self.out.suffix.lower() if self.out else "", suffixes[self.to]
        if given and given != own and given in suffixes.values():
            raise ConfigError(
                f"--out {shown(str(self.out))} has the ending of another format than --to {self.to}",
                hint=f"--to {self.to} is written {f'as {own}' if own else 'into a folder'}",
            )
        if self.to == "onnx" and self.dtype == "bf16":
            raise ConfigError(
                "--to onnx --dtype bf16: onnxruntime has no bf16 on a CPU, so the file could not be checked",
                hint="use --dtype fp16, or --to torch-export",
            )
