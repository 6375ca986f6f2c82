"""Masked pre-training as a task (Paper: Section 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mae.data.augment import Augmentation
from mae.data.loader import Batch
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import ImageScan
from mae.mae import MaskedAutoencoder
from mae.system.seeding import stream
from mae.training.config import PretrainConfig
from mae.training.events import Previewed, Probed
from mae.training.identity import official_args
from mae.training.optim import make_optimizer
from mae.training.parallel import PretrainingLoss
from mae.training.plan import Advice, check_plan
from mae.training.position import Position
from mae.training.previews import Previews
from mae.training.probes import ProbeData, Probes
from mae.training.run import Run
from mae.training.tasks.base import Task


class PretrainingTask(Task):
    """Pre-training: predict the masked patches.

    Args:
        config: Settings of the run.
        scan: Training images.
        held_out: Images of ``--val`` for the previews; None to use training images.
        probe_data: Images for the measurements during training.
        model: The model with its initial weights.
        notes: Messages for the user about the initial weights.
    """

    previews: Previews

    def __init__(
        self,
        config: PretrainConfig,
        scan: ImageScan,
        held_out: ImageSource | None,
        probe_data: ProbeData,
        model: MaskedAutoencoder,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.config = config  # all settings, for ``official_args`` and ``advice``
        self.mask_ratio, self.betas, self.weight_decay = config.mask_ratio, config.betas, config.weight_decay
        self.preview_every, self.precision = config.preview_every, config.precision
        self.images, self.unreadable, self.others = scan.images, scan.unreadable, scan.others
        self.held_out = held_out
        self.probe_data = probe_data
        self.model = model
        self.notes = notes
        self.augmentation = augmentation_of(config)

    @property
    def zero_prediction_loss(self) -> float:
        """Loss of predicting zero everywhere."""
        return self.previews.zero_prediction_loss

    def begin(self, run: Run, position: Position) -> None:
        """Store the run, and choose the images of the previews."""
        self.run = run
        self.probes = Probes(self.model, self.probe_data, run.ranks, precision=self.precision, epochs=run.plan.epochs)
        self.previews = Previews(self.model, self.images, self.held_out, self.mask_ratio)

    def loss(self) -> nn.Module:
        """The mean squared error of the masked patches (Paper: Section 3, "Reconstruction target")."""
        return PretrainingLoss(self.model)

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """AdamW with the official parameter groups."""
        return make_optimizer(self.model, lr=lr, betas=self.betas, weight_decay=self.weight_decay)

    def inputs(self, position: Position, number: int, batch: Batch) -> tuple[float, Tensor]:
        """The mask ratio, and (B, L) uniform noise on the CPU from which this process's masks are drawn."""
        plan = self.run.plan
        source = stream(plan.seed, "mask", position.epoch, number)
        noise = torch.rand(plan.global_batch_size, self.model.config.num_patches, generator=source)
        return self.mask_ratio, noise[self.run.ranks.share(plan.global_batch_size)]

    def timing_inputs(self, count: int) -> tuple[float, Tensor]:
        """Mask ratio and noise from a fixed seed."""
        source = stream(0, "timing", "mask")
        return self.mask_ratio, torch.rand(count, self.model.config.num_patches, generator=source)

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """Mask ratio and noise."""
        return {"mask_ratio": self.mask_ratio, "noise": torch.stack([noise for _, noise in inputs])}

    def official_args(self) -> dict[str, Any]:
        """The settings under the names of the official pre-training script."""
        return official_args(self.config, self.run.plan, self.run.ranks)

    def advice(self, seconds: float) -> tuple[Advice, ...]:
        """Compare the plan with runs that are known to work."""
        return check_plan(self.config, self.run.plan, seconds)

    def shows(self, epochs: int) -> bool:
        """Whether a preview is due: every ``--preview-every`` epochs and after the last."""
        every = self.preview_every
        return bool(every) and (epochs % every == 0 or epochs == self.run.plan.epochs)

    def preview(self, path: Path, epochs: int, *, write: bool) -> Previewed:
        """Draw the reconstructions of the preview images and compute their mean PSNR on masked patches."""
        return Previewed(path, self.previews.draw(path, epochs, write=write), self.model.config.norm_pix_loss)

    def validate(self, done: Position) -> Probed | None:
        """Measure the held-out loss and the probes, if due."""
        return self.probes.measure(done.epoch + 1, done.step) if self.probes else None


def augmentation_of(config: PretrainConfig) -> Augmentation:
    """The official augmentation: random resized crop and horizontal flip."""
    return Augmentation(
        config.image_size, config.in_chans, config.crop_scale, config.hflip, config.decoder, config.crop_ratio
    )
