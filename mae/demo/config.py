"""Settings of ``demo``. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mae.config import shared_option
from mae.errors import ConfigError
from mae.options import option
from mae.reconstruction.config import CHECKPOINT_DEFAULT_TEXT

USUAL_LIMIT = 1000


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Settings of ``demo``."""

    data: Path | None = option(
        None,
        "Folder or archive of images: the page shows the most similar ones by the encoder's features.",
        positional=True,
        metavar="DATA",
    )
    checkpoint: Path | None = option(
        None,
        "Weights with a decoder: a checkpoint file, a run folder, builtin or a released name.",
        default_text=CHECKPOINT_DEFAULT_TEXT,
    )
    port: int = option(7860, "Port of the page on this machine; 0 chooses a free port.", low=0, high=65535)
    limit: int | None = option(
        None, "Maximum number of images of DATA to search.", low=1, default_text=str(USUAL_LIMIT)
    )
    device: str = shared_option("device")
    offline: bool = shared_option("offline")

    def __post_init__(self) -> None:
        if self.limit is not None and self.data is None:
            raise ConfigError(
                f"--limit {self.limit} is the maximum number of images of DATA, but no DATA is given",
                hint="give a folder of images, or drop --limit",
            )
