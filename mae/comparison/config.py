"""Settings of ``compare``. Standard library only."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path

from mae.config import shared_option
from mae.errors import ConfigError
from mae.options import option
from mae.reconstruction.config import check_suffix

REFERENCES = ("auto", "paper", "transformers", "timm")
OLDER_NAMES = {"builtin": "paper"}  # still accepted


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Settings of ``compare``."""

    official: Path = option(
        dataclasses.MISSING,
        "The checkpoint to check: a file, a run folder, builtin or a released name.",
        metavar="CKPT",
        official=("model", "resume"),
    )
    checkpoint: Path | None = option(None, "A second checkpoint to compare with the first, tensor by tensor.")
    image: Path | None = option(None, "Image to run the model on.", default_text="generated noise")
    reference: str = option(
        "auto",
        "Reference: paper (plain float64, written from the paper), transformers, timm, or a clone of the official "
        "repository; auto is paper and those that are installed.",
        metavar="NAME|PATH",
    )
    mask_ratio: float = option(0.75, "Fraction of the patches that is masked.", low=0, below=1)
    seed: int = option(2, "Seed of the mask and of the generated image.", low=0)
    num_heads: int | None = shared_option("num_heads")
    decoder_num_heads: int | None = shared_option("num_heads", help="Attention heads of the decoder.")
    out: Path | None = option(None, "With --checkpoint: write both reconstructions side by side: .png, .jpg or .webp.")
    offline: bool = shared_option("offline")

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", OLDER_NAMES.get(self.reference, self.reference))
        if self.reference not in REFERENCES and not Path(self.reference).is_dir():
            near = difflib.get_close_matches(self.reference, REFERENCES, n=2)
            raise ConfigError(
                f"--reference {self.reference}: neither {', '.join(REFERENCES)} nor a folder",
                hint=f"did you mean {' or '.join(near)}?" if near else None,
            )
        if self.out is not None:
            check_suffix(self.out, "--out")
            if self.checkpoint is None:
                raise ConfigError("--out draws two reconstructions side by side, so it needs --checkpoint")
