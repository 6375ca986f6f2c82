"""Linear probing as a task: the encoder is frozen, the head learns by LARS (Paper: Appendix A.1, Table 10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mae.data.augment import Augmentation
from mae.data.classifier_augment import ClassifierAugmentation
from mae.data.loader import Batch
from mae.training.classifier_config import LinprobeConfig
from mae.training.lars import LARS
from mae.training.position import Position
from mae.training.tasks.classification import ClassificationLoss, ClassificationTask

HEAD_STD = 0.01


class LinprobeTask(ClassificationTask):
    """Train a head on the features of a frozen encoder."""

    config: LinprobeConfig

    def make_augmentation(self) -> Augmentation:
        """Crop and flip."""
        config, sizes = self.config, self.model.config
        return ClassifierAugmentation(
            sizes.img_size, sizes.in_chans, config.crop_scale, config.hflip, config.decoder, config.crop_ratio
        )

    def loss(self) -> nn.Module:
        """Plain cross-entropy."""
        return ClassificationLoss(self.model)

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """LARS over the head's parameters."""
        config = self.config
        return LARS(
            [one for one in self.model.parameters() if one.requires_grad],
            lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coefficient=config.trust_coefficient,
        )

    def inputs(self, position: Position, number: int, batch: Batch) -> tuple[Any, ...]:
        """The labels of the batch, (B,)."""
        return (self.labels_of(batch),)

    def timing_inputs(self, count: int) -> tuple[Any, ...]:
        """Labels of class 0."""
        return (torch.zeros(count, dtype=torch.int64),)
