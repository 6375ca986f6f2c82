"""What a run is: what may not change between its parts, and its options under the official names."""

from __future__ import annotations

from typing import Any

from mae.models import factory_name
from mae.training.config import PretrainConfig
from mae.training.plan import TrainingPlan
from mae.training.ranks import Ranks


def run_identity(config: PretrainConfig, plan: TrainingPlan) -> dict[str, Any]:
    """What may not change between the parts of one run: each value decides its losses."""
    return {
        "pictures": plan.pictures,
        "pictures_digest": plan.pictures_digest,
        "batch_size": plan.batch_size,
        "accum_iter": plan.accum_iter,
        "seed": config.seed,
        "model": repr(config.model_config()),
    }


def official_args(config: PretrainConfig, plan: TrainingPlan, ranks: Ranks) -> dict[str, Any]:
    """The settings under the names of the official trainer's ``args``."""
    size = config.image_size
    return {
        "model": factory_name(config.variant),
        "input_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": config.model_config().patch_size,
        "in_chans": config.in_chans,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
        "batch_size": plan.batch_size // ranks.size,
        "accum_iter": plan.accum_iter,
        "epochs": config.epochs,
        "warmup_epochs": config.warmup_epochs,
        "blr": config.base_lr,
        "lr": plan.lr,
        "min_lr": config.min_lr,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "device": config.device,
        "data_path": str(config.data[0]),
        "output_dir": str(config.out),
        "distributed": not ranks.alone,
        "world_size": ranks.size,
    }
