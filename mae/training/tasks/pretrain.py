"""Masked pre-training as a task: masks are drawn, previews are reconstructions (Paper: Section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.system.distributed import Ranks
from mae.system.seeding import stream
from mae.training.config import PretrainConfig
from mae.training.events import Previewed
from mae.training.plan import TrainingPlan
from mae.training.previews import Previews
from mae.training.run_folder import Position


class PretrainingTask:
    """Predict the removed patches.

    Args:
        config, plan, ranks: The run's.
        previews: The photographs that are reconstructed now and then.
    """

    def __init__(self, config: PretrainConfig, plan: TrainingPlan, ranks: Ranks, previews: Previews) -> None:
        self.config = config
        self.plan = plan
        self.ranks = ranks
        self.previews = previews
        self.num_patches = config.model_config().num_patches

    def inputs(self, position: Position, batch: int) -> tuple[float, Tensor]:
        """The mask ratio, and (B, L) uniform noise on the CPU from which this process's masks are drawn."""
        source = stream(self.config.seed, "mask", position.epoch, batch)
        whole = torch.rand(self.plan.batch_size, self.num_patches, generator=source)
        return self.config.mask_ratio, whole[self.ranks.share(self.plan.batch_size)]

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """Mask ratio and noise."""
        return {"mask_ratio": self.config.mask_ratio, "noise": torch.stack([noise for _, noise in inputs])}

    def preview(self, path: Path, epochs: int, *, write: bool) -> Previewed:
        """Reconstructions of the preview photographs, and their mean PSNR on removed patches."""
        return Previewed(path, self.previews.draw(path, epochs, write=write), self.config.norm_pix_loss)
