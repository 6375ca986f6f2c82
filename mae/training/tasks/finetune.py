"""Fine-tuning as a task: all parameters learn, lower blocks more slowly (Paper: Appendix A.1, Table 9)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.data.augment import Augmentation
from mae.data.classifier_augment import ClassifierAugmentation
from mae.data.loader import Batch
from mae.models.classifier import ImageClassifier
from mae.training.classifier_config import FinetuneConfig
from mae.training.mixing import Mix, draw_mix, drop_path_scales, mix_images, targets
from mae.training.optim import adamw
from mae.training.position import Position
from mae.training.tasks.classification import ClassificationTask

HEAD_STD = 2e-5


class FinetuneLoss(nn.Module):
    """Cross-entropy with smoothed labels of mixed images, as one forward pass."""

    def __init__(self, model: ImageClassifier, smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.smoothing = smoothing

    def forward(self, imgs: Tensor, labels: Tensor, keep: Tensor, share: Tensor, scales: Tensor | None) -> Tensor:
        """Mean cross-entropy of a batch, scalar.

        Args:
            imgs: Normalised images, (B, C, H, W).
            labels: Classes, (B,).
            keep, share: Weights of mixing, see ``Mix``.
            scales: Factors of drop path, (B, depth, 2), see ``drop_path_scales``; None without drop path.
        """
        logits = self.model(mix_images(imgs, Mix(keep, share)), scales).float()
        return F.cross_entropy(logits, targets(labels, logits.shape[1], self.smoothing, share))


class FinetuneTask(ClassificationTask):
    """Train the whole encoder with a head."""

    config: FinetuneConfig

    @property
    def clip_grad(self) -> float | None:
        """The value of ``--clip-grad``."""
        return self.config.clip_grad

    def make_augmentation(self) -> Augmentation:
        """Crop, flip, RandAugment, random erasing."""
        config, sizes = self.config, self.model.config
        return ClassifierAugmentation(
            sizes.img_size,
            sizes.in_chans,
            config.crop_scale,
            config.hflip,
            config.decoder,
            config.crop_ratio,
            policy=config.aa,
            reprob=config.reprob,
            augmenter=config.augmenter,
        )

    def loss(self) -> nn.Module:
        """Cross-entropy with smoothed, mixed labels."""
        return FinetuneLoss(self.model, self.config.smoothing)

    def make_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each layer."""
        config = self.config
        return adamw(layer_groups(self.model, config.weight_decay, config.layer_decay), lr=lr, betas=config.betas)

    def inputs(self, position: Position, number: int, batch: Batch) -> tuple[Any, ...]:
        """Labels, weights of mixing, and factors of drop path."""
        config, size = self.config, self.run.plan.global_batch_size
        mix = draw_mix(
            self.model.config.img_size,
            config.seed,
            "mix",
            position.epoch,
            number,
            mixup=config.mixup,
            cutmix=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
        )
        scales = drop_path_scales(
            config.drop_path, size, self.model.config.depth, self.random("drop path", position, number)
        )
        return self.labels_of(batch), mix.keep, mix.share, self.own_share(scales)

    def replayed(self, inputs: list[tuple[Any, ...]]) -> dict[str, Any]:
        """The inputs of each batch, the name of the task, and the label smoothing."""
        return {**super().replayed(inputs), "smoothing": self.config.smoothing}

    def timing_inputs(self, count: int) -> tuple[Any, ...]:
        """Labels of class 0, nothing mixed, and drop path as in training."""
        depth = self.model.config.depth
        scales = drop_path_scales(self.config.drop_path, count, depth, torch.Generator().manual_seed(0))
        return torch.zeros(count, dtype=torch.int64), torch.ones(self.model.config.img_size), torch.ones(()), scales


def layer_groups(model: ImageClassifier, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose ``lr_scale`` is ``layer_decay`` to the power of the number of layers above.

    1-D parameters, positions and the class token are not decayed. Groups come in the order in which the model's
    parameters first need them, as in the official script, so that optimiser states are exchangeable.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter, layer in model.layers():
        decays = parameter.ndim > 1 and name not in ("cls_token", "pos_embed")
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (model.config.depth + 1 - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
