"""What ``embed`` and ``evaluate`` are asked for. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mae.config import parse_size
from mae.errors import ConfigError
from mae.options import brief, option
from mae.reconstruction.config import DEFAULT_CHECKPOINT

POOLS = ("cls", "mean", "patches")
FEATURE_NORMS = ("none", "final")
FEATURE_FILES = (".npz", ".parquet", ".csv", ".pt")

_IMAGES = "Images"
_ENCODER = "Encoder"
_COMPUTING = "Computing"


def _shared(name: str) -> Any:
    """Options that both commands have, in the same words."""
    return {
        "image_size": option(
            None,
            "The frame in pixels, S or HxW; position tables follow.",
            parse=parse_size,
            metavar="S|HxW",
            default_text="the weights'",
            panel=_IMAGES,
        ),
        "crop_pct": option(
            None,
            "Share of each side that is kept when an image is scaled and its centre cut out.",
            above=0,
            high=1,
            default_text="224/256 up to 224 px, 1 above",
            panel=_IMAGES,
        ),
        "max_unreadable": option(
            0.1, "Stop when more than this share of the images is unreadable.", low=0, below=1, panel=_IMAGES
        ),
        "layer": option(
            None, "Read the output of this block, counted from 1.", low=1, default_text="the last", panel=_ENCODER
        ),
        "batch_size": option(64, "Images in a batch.", low=1, high=65536, panel=_COMPUTING),
        "workers": option(
            None, "Processes that decode images.", low=0, high=1024, default_text="by cores", panel=_COMPUTING
        ),
        "device": option(
            "auto", "auto takes the best there is.", choices=("auto", "cuda", "mps", "cpu"), panel=_COMPUTING
        ),
        "precision": option(
            "auto",
            "auto is bf16 where the hardware multiplies in it, else fp32.",
            choices=("auto", "fp32", "bf16", "fp16"),
            panel=_COMPUTING,
        ),
        "offline": option(False, "Download nothing.", flags="--offline", panel=_COMPUTING),
    }[name]


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
    """Which images, which encoder, and what of its output is written where."""

    data: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Folders with images, archives of them, or shards by https URL; class folders become labels.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )
    checkpoint: Path = option(
        DEFAULT_CHECKPOINT,
        "Weights: a file of yours, with or without a decoder, an official one, or its name.",
        official=("model", "resume", "finetune"),
    )
    out: Path = option(Path("features.npz"), "The file to write: .npz, .parquet, .csv or .pt.")
    pool: str = option(
        "mean",
        "The class token, the mean of the patch tokens, or all patch tokens.",
        choices=POOLS,
        panel=_ENCODER,
    )
    layer: int | None = _shared("layer")
    feature_norm: str = option(
        "final",
        "Whether the encoder's final norm is applied; it can halve or double a k-NN accuracy.",
        choices=FEATURE_NORMS,
        panel=_ENCODER,
    )
    dtype: str = option("float32", "Type of the numbers in the file.", choices=("float32", "float16"), panel=_ENCODER)
    image_size: tuple[int, int] | None = _shared("image_size")
    crop_pct: float | None = _shared("crop_pct")
    max_unreadable: float = _shared("max_unreadable")
    batch_size: int = _shared("batch_size")
    workers: int | None = _shared("workers")
    device: str = _shared("device")
    precision: str = _shared("precision")
    offline: bool = _shared("offline")

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in FEATURE_FILES:
            raise ConfigError(f"--out {self.out}: the name must end in {', '.join(FEATURE_FILES)}")
        if self.pool == "patches" and self.out.suffix.lower() == ".csv":
            raise ConfigError(
                f"--pool patches: a table cannot hold several vectors for an image (--out {self.out})",
                hint="write them to a .npz, .pt or .parquet file, perhaps with --dtype float16",
            )


PROBES = ("knn", "linear", "attentive")
REPORT_FILES = (".html", ".htm")
_PROBES = "Probes"


def parse_fractions(value: Any) -> tuple[float, ...]:
    """Shares of the labels: numbers, or texts of numbers with spaces or commas between them.

    Raises:
        ValueError: Anything else, or a number that is no share.
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    words = [word for item in items for word in (item.replace(",", " ").split() if isinstance(item, str) else [item])]
    try:
        numbers = tuple(dict.fromkeys(float(word) for word in words))
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(0 < number <= 1 for number in numbers):
        raise ValueError(f"wanted shares above 0 and up to 1, for instance 0.01 or '0.01 0.1 1'; got {brief(value)}")
    return numbers


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which labelled images, which encoders, and what is asked of their features."""

    data: Path = option(
        dataclasses.MISSING,
        "Class folders, or an archive of them: below train/ and test/ (or val/), or one tree that is split.",
        positional=True,
        metavar="DATA",
    )
    checkpoint: tuple[Path, ...] = option(
        (DEFAULT_CHECKPOINT,), "Weights, as for embed; several times to compare.", metavar="PATH"
    )
    probe: tuple[str, ...] = option(
        PROBES, "What to train on the features; several times for several.", choices=PROBES, panel=_PROBES
    )
    references: bool = option(
        True, "Beside them: the same architecture untrained, pixels, whitened pixels.", panel=_PROBES
    )
    label_fraction: tuple[float, ...] = option(
        (1.0,),
        "Share of the training labels, of each class; several times, or '0.01 0.1 1'.",
        parse=parse_fractions,
        metavar="SHARE",
        panel=_PROBES,
    )
    test_share: float = option(
        0.2, "Share of each class that tests, where DATA has no test/ or val/.", above=0, below=1, panel=_PROBES
    )
    seed: int = option(0, "Of splits, label fractions, held-out parts and fresh weights.", low=0, panel=_PROBES)
    layer: int | None = _shared("layer")
    image_size: tuple[int, int] | None = _shared("image_size")
    crop_pct: float | None = _shared("crop_pct")
    max_unreadable: float = _shared("max_unreadable")
    report: Path | None = option(None, "Write a page too: .html or .htm.")
    cache: Path | None = option(
        None, "Folder that features are kept in.", default_text="the user's cache folder", panel=_COMPUTING
    )
    tokens_gb: float = option(
        4.0,
        "GB on disk for patch tokens, which attentive reads; if they do not fit, it gets fewer images.",
        above=0,
        panel=_COMPUTING,
    )
    batch_size: int = _shared("batch_size")
    workers: int | None = _shared("workers")
    device: str = _shared("device")
    precision: str = _shared("precision")
    offline: bool = _shared("offline")

    def __post_init__(self) -> None:
        if self.report is not None and self.report.suffix.lower() not in REPORT_FILES:
            raise ConfigError(f"--report {self.report}: the name must end in .html or .htm")
