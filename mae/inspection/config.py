"""Settings of ``inspect``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.config import shared_option
from mae.errors import ConfigError
from mae.options import option

PAGES = (".html", ".htm")
USUAL_IMAGES = 48
SHEETS = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class InspectConfig:
    """Settings of ``inspect``."""

    data: tuple[Path, ...] = option(
        dataclasses.MISSING,
        "Folders of images, archives (.tar, .zip), Parquet files, or URLs of these: all sources that pretrain reads.",
        positional=True,
        metavar="DATA",
        official=("data_path",),
    )
    decode: int = option(
        2000,
        "Number of images to decode in full, spaced evenly over the data: finds truncated files, and gives mean and "
        "std.",
        low=0,
    )
    duplicates: bool = option(True, "Find files that are equal byte for byte; this reads every file in full.")
    images: int | None = option(
        None, "Number of images on the contact sheet and the page.", low=1, high=1000, default_text="48"
    )
    sheet: Path | None = option(None, "Write a contact sheet: .jpg, .png or .webp.")
    report: Path | None = option(None, "Write an HTML page: .html or .htm.")
    workers: int | None = shared_option("workers")
    offline: bool = shared_option("offline")

    @property
    def drawn(self) -> int:
        """Number of images on the contact sheet and the page."""
        return (self.images or USUAL_IMAGES) if self.sheet or self.report else 0

    def __post_init__(self) -> None:
        if self.images is not None and self.sheet is None and self.report is None:
            raise ConfigError(
                f"--images {self.images} is the number of images on a contact sheet or page, but neither is requested",
                hint="add --sheet FILE.jpg or --report FILE.html, or drop --images",
            )
        for flag, path, endings in (("--sheet", self.sheet, SHEETS), ("--report", self.report, PAGES)):
            if path is not None and path.suffix.lower() not in endings:
                raise ConfigError(f"{flag} {path}: the name must end in {', '.join(endings[:-1])} or {endings[-1]}")
