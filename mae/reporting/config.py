"""Settings of ``report``, ``watch`` and ``runs``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.errors import ConfigError
from mae.options import option
from mae.reconstruction.config import check_animation

SUFFIXES = (".html", ".htm")
MOST_COMPARED = 12  # runs on one page


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Settings of ``report``."""

    run: tuple[Path, ...] = option(
        dataclasses.MISSING, "The run folder; several runs are compared on one page.", positional=True, metavar="RUN"
    )
    out: Path = option(Path("report.html"), "Output file: .html or .htm.")
    animate: Path | None = option(None, "Also write the previews as an animation over the epochs: .webp or .gif.")
    images: int = option(
        8,
        "Maximum number of previews, spaced evenly over the run, including the first and the last.",
        low=0,
        high=100,
        aliases=("pictures",),
    )

    def __post_init__(self) -> None:
        if isinstance(self.run, str | Path):  # a single run, given in Python
            object.__setattr__(self, "run", (Path(self.run),))
        if len(self.run) > MOST_COMPARED:
            raise ConfigError(f"{len(self.run)} runs were given; at most {MOST_COMPARED} fit on one page")
        if self.out.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"--out {self.out}: the name must end in .html or .htm")
        if self.animate is not None:
            check_animation(self.animate)
            if len(self.run) > 1:
                raise ConfigError("--animate shows the previews of one run", hint="give one RUN, or drop --animate")


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """Settings of ``watch``."""

    run: Path = option(dataclasses.MISSING, "The run folder.", positional=True, metavar="RUN")
    every: float = option(2.0, "Seconds between updates.", low=0.1)
    once: bool = option(False, "Print the current state and exit.", flags="--once")


@dataclasses.dataclass(frozen=True)
class RunsConfig:
    """Settings of ``runs``."""

    folder: Path = option(
        dataclasses.MISSING, "A folder that contains runs, at any depth.", positional=True, metavar="FOLDER"
    )
    sort: str = option(
        "newest", "Sort by the time of the last log line, by loss or by name.", choices=("newest", "loss", "name")
    )
