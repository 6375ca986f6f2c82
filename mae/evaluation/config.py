"""Settings of ``embed``, ``evaluate`` and ``predict``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mae.config import shared_option
from mae.errors import ConfigError
from mae.options import brief, option, refuse_without_effect
from mae.reconstruction.config import CHECKPOINT_DEFAULT_TEXT

POOLS = ("cls", "mean", "patches")
FEATURE_NORMS = ("none", "final")
FEATURE_FILES = (".npz", ".parquet", ".csv", ".pt")

_IMAGES = "Images"
_ENCODER = "Encoder"
_COMPUTING = "Computing"


_LAYER: dict[str, Any] = {
    "default": None,
    "help": "Take the output of this encoder block, counted from 1.",
    "low": 1,
    "default_text": "the last block",
    "panel": _ENCODER,
}
_LAST_BLOCKS: dict[str, Any] = {
    "default": 1,
    "help": "Concatenate the features of this many blocks, up to the last or --layer; DINO evaluates 4.",
    "low": 1,
    "panel": _ENCODER,
}
_CROP_PCT: dict[str, Any] = {
    "default": None,
    "help": "Fraction of each side that the centre crop keeps.",
    "above": 0,
    "high": 1,
    "default_text": "224/256 up to 224 px, 1 above",
    "panel": _IMAGES,
}
_BATCH_SIZE: dict[str, Any] = {
    "default": 64,
    "help": "Images per batch, in each process.",
    "low": 1,
    "high": 65536,
    "panel": _COMPUTING,
}
_IMAGE_SIZE_HELP = "Image size in pixels, S or HxW; position embeddings are adapted."


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Settings of ``embed``."""

    data: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Folders of images, archives (.tar, .zip), Parquet files, or URLs of these; class folders become labels.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )
    checkpoint: Path | None = option(
        None,
        "Weights, with or without a decoder: a checkpoint file, a run folder, builtin or a released name.",
        default_text=CHECKPOINT_DEFAULT_TEXT,
        official=("model", "resume", "finetune"),
    )
    out: Path = option(
        Path("features.npz"), "Output file: .npz, .parquet, .csv or .pt.", official=("output_dir", "log_dir")
    )
    pool: str = option(
        "mean",
        "Features: the class token, the mean of the patch tokens, or all patch tokens.",
        choices=POOLS,
        panel=_ENCODER,
        official=("cls_token", "global_pool"),
    )
    layer: int | None = option(**_LAYER)
    last_blocks: int = option(**_LAST_BLOCKS)
    feature_norm: str = option(
        "final",
        "Whether to apply the encoder's final norm; k-NN accuracy can halve or double with it.",
        choices=FEATURE_NORMS,
        panel=_ENCODER,
    )
    dtype: str = option("float32", "Number format of the file.", choices=("float32", "float16"), panel=_ENCODER)
    image_size: tuple[int, int] | None = shared_option("image_size", help=_IMAGE_SIZE_HELP, panel=_IMAGES)
    crop_pct: float | None = option(**_CROP_PCT)
    max_unreadable: float = shared_option("max_unreadable", panel=_IMAGES)
    batch_size: int = option(**_BATCH_SIZE)
    workers: int | None = shared_option("workers", panel=_COMPUTING)
    device: str = shared_option("device", panel=_COMPUTING)
    precision: str = shared_option("precision", panel=_COMPUTING)
    offline: bool = shared_option("offline", panel=_COMPUTING)

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in FEATURE_FILES:
            raise ConfigError(f"--out {self.out}: the name must end in {', '.join(FEATURE_FILES)}")
        if self.pool == "patches":
            refuse_without_effect(self, "last_blocks", "with --pool patches")
        if self.pool == "patches" and self.out.suffix.lower() == ".csv":
            raise ConfigError(
                f"--pool patches: a .csv file has one vector per image (--out {self.out})",
                hint="write a .npz, .pt or .parquet file, perhaps with --dtype float16",
            )


FINETUNED = Path("finetuned")  # where finetune writes its run unless it is told otherwise
PROBES = ("knn", "linear", "attentive")
REPORT_FILES = (".html", ".htm")
_PROBES = "Probes"


def parse_fractions(value: Any) -> tuple[float, ...]:
    """Parse fractions: numbers, or strings of numbers separated by spaces or commas.

    Raises:
        ValueError: ``value`` is neither, or a number is outside (0, 1].
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    words = [word for item in items for word in (item.replace(",", " ").split() if isinstance(item, str) else [item])]
    try:
        numbers = tuple(dict.fromkeys(float(word) for word in words))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(0 < number <= 1 for number in numbers):
        shown = items[0] if len(items) == 1 else value
        raise ValueError(f"wanted fractions above 0 and up to 1, such as 0.01 or '0.01 0.1 1'; got {brief(shown)}")
    return numbers


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ``evaluate``."""

    data: Path = option(
        dataclasses.MISSING,
        "Class folders or an archive of them, below train/ and test/ (or val/), or without a split.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )
    checkpoint: tuple[Path, ...] = option(
        (),
        "Weights, as for embed; repeat it to compare several.",
        metavar="PATH",
        default_text=CHECKPOINT_DEFAULT_TEXT,
        official=("model", "resume", "finetune"),
    )
    probe: tuple[str, ...] = option(
        PROBES, "Probe to train on the features; repeat it for several.", choices=PROBES, panel=_PROBES
    )
    references: bool = option(
        True, "Also evaluate baselines: the untrained architecture, pixels, whitened pixels.", panel=_PROBES
    )
    label_fraction: tuple[float, ...] = option(
        (1.0,),
        "Fraction of the training labels to use, per class; repeat it or write '0.01 0.1 1'.",
        parse=parse_fractions,
        metavar="SHARE",
        panel=_PROBES,
    )
    test_share: float = option(
        0.2, "Fraction of each class to test on if DATA has no test/ or val/.", above=0, below=1, panel=_PROBES
    )
    seed: int = option(0, "Seed of splits, label fractions and initial weights.", low=0, panel=_PROBES)
    layer: int | None = option(**_LAYER)
    last_blocks: int = option(**_LAST_BLOCKS)
    image_size: tuple[int, int] | None = shared_option("image_size", help=_IMAGE_SIZE_HELP, panel=_IMAGES)
    crop_pct: float | None = option(**_CROP_PCT)
    max_unreadable: float = shared_option("max_unreadable", panel=_IMAGES)
    report: Path | None = option(None, "Also write an HTML report: .html or .htm.", official=("output_dir", "log_dir"))
    cache: Path | None = option(
        None, "Folder for cached features.", default_text="the user's cache folder", panel=_COMPUTING
    )
    tokens_gb: float = option(
        4.0,
        "GB of disk for the patch tokens of the attentive probe; if they do not fit, it trains on fewer images.",
        above=0,
        panel=_COMPUTING,
    )
    batch_size: int = option(**_BATCH_SIZE)
    workers: int | None = shared_option("workers", panel=_COMPUTING)
    device: str = shared_option("device", panel=_COMPUTING)
    precision: str = shared_option("precision", panel=_COMPUTING)
    offline: bool = shared_option("offline", panel=_COMPUTING)

    def __post_init__(self) -> None:
        if self.report is not None and self.report.suffix.lower() not in REPORT_FILES:
            raise ConfigError(f"--report {self.report}: the name must end in .html or .htm")
        if set(self.probe) == {"attentive"}:
            refuse_without_effect(
                self, "last_blocks", "with the attentive probe alone, which reads one block's patches"
            )
        if "attentive" not in self.probe:
            refuse_without_effect(self, "tokens_gb", "without --probe attentive")


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of ``predict``."""

    images: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Images, folders of images, archives (.tar, .zip), Parquet files, or URLs of these.",
        positional=True,
        metavar="IMAGE",
    )
    checkpoint: Path = option(
        FINETUNED,
        "A classifier: the run folder of finetune or linprobe, or a fine-tuned checkpoint file.",
        official=("model", "resume", "finetune"),
    )
    top_k: int = option(1, "Number of most probable classes to show.", low=1)
    out: Path | None = option(None, "Also write the predictions as a table: .csv.")
    image_size: tuple[int, int] | None = shared_option("image_size", help=_IMAGE_SIZE_HELP, panel=_IMAGES)
    crop_pct: float | None = option(**_CROP_PCT)
    batch_size: int = option(**_BATCH_SIZE)
    workers: int | None = shared_option("workers", panel=_COMPUTING)
    device: str = shared_option("device", panel=_COMPUTING)
    precision: str = shared_option("precision", panel=_COMPUTING)
    offline: bool = shared_option("offline", panel=_COMPUTING)

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() != ".csv":
            raise ConfigError(f"--out {self.out}: the name must end in .csv")
