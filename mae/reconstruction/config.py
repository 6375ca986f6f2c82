"""Settings of ``reconstruct``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mae.config import DEFAULT_MASK_RATIO, shared_option
from mae.errors import ConfigError
from mae.options import STANDARD_STREAM, option

ANIMATION_FORMATS = {".webp": "WEBP", ".gif": "GIF"}
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

CHECKPOINT_DEFAULT_TEXT = "the run in the folder run, else builtin"


def check_suffix(path: Path, label: str) -> None:
    """Check that a file name has the suffix of an image format that can be written.

    Raises:
        ConfigError: It has another suffix.
    """
    if path.suffix.lower() not in IMAGE_FORMATS:
        raise ConfigError(f"{label} {path}: the name must end in {', '.join(IMAGE_FORMATS)}")


def check_animation(path: Path) -> None:
    """Check that the file name of ``--animate`` has the suffix of an animation format.

    Raises:
        ConfigError: It has another suffix.
    """
    if path.suffix.lower() not in ANIMATION_FORMATS:
        raise ConfigError(f"--animate {path}: the name must end in {', '.join(ANIMATION_FORMATS)}")


@dataclasses.dataclass(frozen=True)
class ReconstructConfig:
    """Settings of ``reconstruct``."""

    images: tuple[Path | Any, ...] = option(  # Any: the library also takes images in memory
        dataclasses.MISSING,
        "Images, folders, archives, Parquet files, or URLs of these; - reads one image from standard input.",
        positional=True,
        metavar="IMAGE",
        stream=True,
        official=("data_path",),
    )
    checkpoint: Path | None = option(
        None,
        "Weights with a decoder: a checkpoint file, a run folder, builtin or a released name.",
        default_text=CHECKPOINT_DEFAULT_TEXT,
        official=("model", "resume"),
    )
    out: Path | None = option(
        Path("reconstruction.png"),
        "Output image: .png, .jpg or .webp; - writes to standard output.",
        stream=True,
        official=("output_dir",),
    )
    format: str | None = option(None, "Image format for --out -.", choices=("png", "jpg", "webp"), default_text="png")
    limit: int = option(
        8, "Maximum number of images from each folder, archive or table; images named one by one are all shown.", low=1
    )
    mask_ratio: tuple[float, ...] = option(
        (),
        "Fraction of the patches that is masked; repeat it to draw several columns.",
        low=0,
        below=1,
        metavar="RATIO",
        default_text=f"{DEFAULT_MASK_RATIO:g}",
    )
    seed: int = option(2, "Seed of the mask; 2 gives the mask of the official notebook.", low=0)
    mask: Path | None = option(None, "Use this image as the mask: white patches are masked.")
    resize: bool | None = option(
        None,
        "Resize the whole image, keeping its shape, or crop the centre to the image size.",
        flags="--resize/--crop",
        default_text="resize; crop for --image-size HxW and for learnt position embeddings",
    )
    image_size: tuple[int, int] | None = shared_option("image_size")
    norm_pix: str = option(
        "auto",
        "Whether the model predicts normalised patches; auto reads it from the checkpoint.",
        choices=("auto", "on", "off"),
        official=("norm_pix_loss",),
    )
    separate: Path | None = option(None, "Also write every panel as a separate file into this folder.")
    animate: Path | None = option(None, "Also write an animation with mask ratios from 5% to 95%: .webp or .gif.")
    device: str = shared_option("device")
    offline: bool = shared_option("offline")

    def __post_init__(self) -> None:
        if self.out is not None and not self.to_stream:
            check_suffix(self.out, "--out")
        if self.out is not None and not self.to_stream and self.format is not None:
            raise ConfigError(
                f"--format {self.format} and --out {self.out}: the suffix of a file name gives its format",
                hint="use --format only with --out -, standard output",
            )
        if self.animate is not None:
            check_animation(self.animate)
            if self.mask is not None:
                raise ConfigError(
                    "--animate draws masks of many ratios, but --mask is one mask", hint="drop one of them"
                )
        if self.mask is not None and self.mask_ratio:
            several = "several " if len(self.mask_ratio) > 1 else ""
            raise ConfigError(
                f"--mask and {several}--mask-ratio: the mask already determines the ratio", hint="drop one of them"
            )

    @property
    def to_stream(self) -> bool:
        """Whether the image goes to standard output instead of a file."""
        return self.out == STANDARD_STREAM

    @property
    def kind(self) -> str:
        """The format of the image on standard output, as Pillow calls it."""
        return IMAGE_FORMATS[f".{self.format or 'png'}"]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The mask ratios (those that would be used without ``--mask``)."""
        return self.mask_ratio or (DEFAULT_MASK_RATIO,)
