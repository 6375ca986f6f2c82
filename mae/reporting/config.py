"""What ``report`` and ``watch`` are asked for. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.errors import ConfigError
from mae.options import option

SUFFIXES = (".html", ".htm")


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Which run, shown in which file."""

    run: Path = option(dataclasses.MISSING, "The run's folder.", positional=True, metavar="RUN")
    out: Path = option(Path("report.html"), "Output file: .html or .htm.")
    images: int = option(
        8,
        "Maximum number of previews, spaced evenly over the run, including the first and the last.",
        low=0,
        high=100,
        aliases=("pictures",),
    )

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out {self.out}: the name must end in .html or .htm")


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Which run, and how often to look."""

    run: Path = option(dataclasses.MISSING, "The run's folder.", positional=True, metavar="RUN")
    every: float = option(2.0, "Seconds between updates.", low=0.1)
    once: bool = option(False, "Print the current state and exit.", flags="--once")
