"""Which settings may change on resuming, and the options of a run under their official names."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from mae.io.urls import public_name
from mae.models import factory_name
from mae.system.distributed import Ranks
from mae.training.classifier_config import RunConfig
from mae.training.config import SIZES, PretrainConfig
from mae.training.plan import TrainingPlan


class OnResume(enum.Enum):
    """Effect of resuming a run with another value of a setting."""

    FREE = "losses and weights do not change: allowed"
    ROUNDING = "losses and weights change by rounding only: allowed, with a note"
    LENGTH = "the number of epochs and so the learning rate schedule change: allowed, logged, with a note"
    FIXED = "the run would not be the same: refused"


# Every setting has an entry. The images are identified by their names within the data folders, so the folders may
# have moved; the batch size is that of all processes together.
ON_RESUME = {
    "data": OnResume.FREE,
    **dict.fromkeys(
        ("variant", "image_size", "patch_size", "in_chans", "norm_pix_loss", "init", *SIZES, "mask_ratio"),
        OnResume.FIXED,
    ),
    "epochs": OnResume.LENGTH,
    **dict.fromkeys(
        ("warmup_epochs", "batch_size", "accum_iter", "base_lr", "lr", "min_lr", "weight_decay", "betas"),
        OnResume.FIXED,
    ),
    **dict.fromkeys(("crop_scale", "crop_ratio", "hflip"), OnResume.FIXED),
    **dict.fromkeys(
        # All decoders give the same pixels, and activation checkpointing bit-identical gradients.
        ("workers", "decoder", "cache", "cache_disk", "max_unreadable", "val", "probe", "probe_every", "probe_images",
         "activation_checkpointing"),
        OnResume.FREE,
    ),
    **dict.fromkeys(("compile", "shard"), OnResume.ROUNDING),
    **dict.fromkeys(("out", "resume", "auto_resume"), OnResume.FREE),
    "seed": OnResume.FIXED,
    **dict.fromkeys(("device", "precision"), OnResume.ROUNDING),
    **dict.fromkeys(
        ("save_every", "save_minutes", "keep_last", "nan_limit", "on_nan", "preview_every", "log_every", "offline",
         "tensorboard", "log_to"),
        OnResume.FREE,
    ),
}  # fmt: skip

# Names of the official trainer under which older states record these settings.
_IN_ARGS = {
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
    "epochs": "epochs",
    "warmup_epochs": "warmup_epochs",
    "base_lr": "blr",
    "min_lr": "min_lr",
    "weight_decay": "weight_decay",
    "seed": "seed",
}


def deciding_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which the losses depend, from all settings as plain values by name."""
    return {name: value for name, value in settings.items() if on_resume(name) is not OnResume.FREE}


def on_resume(name: str) -> OnResume:
    """Effect of resuming with another value of a setting; a setting that is not in ``ON_RESUME`` must not change."""
    return ON_RESUME.get(name, OnResume.FIXED)


def recorded_settings(identity: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """The settings that affect the losses, as far as a state records them.

    Args:
        identity: Identity of the state; older ones have no settings.
        args: The state's options under their official names.
    """
    if "settings" in identity:
        return dict(identity["settings"])
    args = args if isinstance(args, Mapping) else {}
    return {name: args[official] for name, official in _IN_ARGS.items() if isinstance(args.get(official), int | float)}


def official_training_args(config: RunConfig, plan: TrainingPlan, ranks: Ranks) -> dict[str, Any]:
    """The settings that all official trainers have, under the names of their ``args``."""
    return {
        "batch_size": plan.global_batch_size // ranks.size,
        "accum_iter": plan.accum_iter,
        "epochs": config.epochs,
        "warmup_epochs": config.warmup_epochs,
        "blr": config.base_lr,
        "lr": plan.lr,
        "min_lr": config.min_lr,
        "weight_decay": config.weight_decay,
        "seed": config.seed,
        "device": config.device,
        "data_path": public_name(config.data[0]),
        "output_dir": str(config.out),
        "distributed": not ranks.alone,
        "world_size": ranks.size,
    }


def official_args(config: PretrainConfig, plan: TrainingPlan, ranks: Ranks) -> dict[str, Any]:
    """The settings under the names of the official trainer's ``args``."""
    size = config.image_size
    return {
        "model": factory_name(config.variant) if not config.changed_sizes() else "custom",
        "input_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": config.model_config().patch_size,
        "in_chans": config.in_chans,
        "mask_ratio": config.mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
        **official_training_args(config, plan, ranks),
    }
