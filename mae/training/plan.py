"""The plan of a run, computed before it starts. Standard library only."""

from __future__ import annotations

import dataclasses
import math

from mae.errors import DataError
from mae.models import VARIANTS, variant_config
from mae.models.parameters import count_parameters
from mae.training.classifier_config import RunConfig
from mae.training.config import PretrainConfig
from mae.training.presets import PRESETS
from mae.training.schedule import scaled_lr

RECIPE_BATCH = 4096  # Paper: Appendix A.1, Table 8; its learning rate there is 2.4e-3
RECIPE_LR = 2.4e-3

# Rules of thumb, not measurements of anyone's data; docs/choosing.md says where each comes from.
FEWEST_STEPS = 1_000  # fifteen photographs, memorised, took 1,600
ENOUGH_STEPS = 10_000
LEAST_LR, MOST_LR = 1e-4, 6e-3  # of a run from scratch with AdamW
MOST_PARAMETERS_PER_IMAGE = 5_000  # ViT-B on 22,000 images; the published ViT-L on ImageNet has 257
LONGEST_WARM_UP = 0.2  # of the run; the recipe's is 0.05
SMALL_DATA = 10_000  # images, up to which the preset is suggested
MOST_CPU_HOURS = 12.0


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Counts and rates of a run.

    Attributes:
        images: Images to learn from.
        batch_size: Images in a batch over all processes; fewer than was asked for where there are no more.
        effective_batch: Images that one optimiser step averages over.
        lr: The peak learning rate.
        batches_per_epoch: Batches in an epoch.
        steps_per_epoch: Optimiser steps in an epoch; the last averages over the batches that are left.
        total_steps: Optimiser steps of the whole run.
        warnings: What the user may not have meant.
        images_digest: Tells one set of so many images from another by their names.
    """

    images: int
    batch_size: int
    accum_iter: int
    effective_batch: int
    lr: float
    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    warnings: tuple[str, ...]
    images_digest: str = ""


def make_plan(
    config: RunConfig, images: int, digest: str = "", *, processes: int = 1, batch_size: int | None = None
) -> TrainingPlan:
    """Compute the plan of a run.

    Args:
        config: Its settings.
        images, digest: Their number, and what their source tells of their names.
        processes: How many processes share each batch.
        batch_size: Images in a batch over all processes, where a run that goes on has fixed it.

    Raises:
        DataError: There are fewer images than processes.
    """
    warnings = []
    batch_size = batch_size or config.batch_size * processes
    if images < batch_size:
        if images < processes:
            raise DataError(f"{images} images are too few for {processes} processes")
        whole = images - images % processes
        warnings.append(f"{images} images do not fill a batch of {batch_size}; the batch is {whole}")
        batch_size = whole
    batches = images // batch_size
    accum_iter = min(config.accum_iter, batches)
    if accum_iter < config.accum_iter:
        warnings.append(
            f"an epoch has {batches} batches, so {accum_iter} and not {config.accum_iter} gradients are accumulated"
        )
    effective = batch_size * accum_iter
    steps = math.ceil(batches / accum_iter)
    if config.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up ({config.warmup_epochs:g} epochs) outlasts the run ({config.epochs}): the learning rate "
            f"never reaches its peak; --warmup-epochs {config.epochs * 0.05:.2g} would be the recipe's share"
        )
    lr = config.lr if config.lr is not None else scaled_lr(config.base_lr, effective)
    if config.min_lr > lr:
        warnings.append(f"--min-lr {config.min_lr:g} is above the peak learning rate {lr:.3g}")
    total = steps * config.epochs
    return TrainingPlan(images, batch_size, accum_iter, effective, lr, batches, steps, total, tuple(warnings), digest)


@dataclasses.dataclass(frozen=True)
class Advice:
    """Something in a plan that is unlikely to end well, though it can be trained.

    Attributes:
        check: Which check says so: ``steps``, ``warm-up``, ``learning rate``, ``model size`` or ``time``.
        message: What is wrong.
        options: What to type instead.
    """

    check: str
    message: str
    options: str


def check_plan(config: PretrainConfig, plan: TrainingPlan) -> tuple[Advice, ...]:
    """Hold the plan of a new run against what is known to work."""
    checks = (_check_steps, _check_warm_up, _check_lr, _check_model_size)
    return tuple(advice for check in checks if (advice := check(config, plan)) is not None)


def check_time(config: PretrainConfig, plan: TrainingPlan, device: str, seconds: float) -> tuple[Advice, ...]:
    """Say so where a run would keep a CPU busy for days.

    Args:
        config, plan: The run's.
        device: What it computes on.
        seconds: How long it would take.
    """
    hours = seconds / 3600
    if device != "cpu" or hours <= MOST_CPU_HOURS:
        return ()
    epochs = max(1, int(config.epochs * MOST_CPU_HOURS / hours))
    return (
        Advice(
            "time",
            f"about {hours:,.0f} hours on a CPU",
            _or_preset(
                config, plan, f"--epochs {epochs} for {MOST_CPU_HOURS:g} hours, or a smaller --variant or --image-size"
            ),
        ),
    )


def _check_steps(config: PretrainConfig, plan: TrainingPlan) -> Advice | None:
    if plan.total_steps >= FEWEST_STEPS:
        return None
    epochs = f"--epochs {math.ceil(FEWEST_STEPS / plan.steps_per_epoch)}"
    fewer = f"--accum-iter 1 or {epochs}" if plan.accum_iter > 1 else epochs
    message = f"{plan.total_steps:,} steps in all; a model shows little after fewer than {FEWEST_STEPS:,}"
    return Advice("steps", message, fewer)


def _check_warm_up(config: PretrainConfig, plan: TrainingPlan) -> Advice | None:
    share = config.warmup_epochs / config.epochs
    if not LONGEST_WARM_UP < share < 1:  # longer than the run: the plan itself says so
        return None
    message = f"the warm-up ({config.warmup_epochs:g} epochs) is {share:.0%} of the run; the recipe's is 5%"
    return Advice("warm-up", message, f"--warmup-epochs {config.epochs * 0.05:.2g}")


def _check_lr(config: PretrainConfig, plan: TrainingPlan) -> Advice | None:
    """Only of a rate that follows from the batch: who gives --lr means it, and so may who goes on from weights."""
    if config.lr is not None or config.init is not None or LEAST_LR <= plan.lr <= MOST_LR:
        return None
    # A gradient's noise falls with the root of the batch, and AdamW divides by its size: so the rate follows the root.
    suited = f"--lr {RECIPE_LR * math.sqrt(plan.effective_batch / RECIPE_BATCH):.1g}"
    if plan.lr > MOST_LR:
        message = (
            f"the learning rate is {plan.lr:.2g} for a batch of {plan.effective_batch:,}; above {MOST_LR:g} runs break"
        )
        return Advice("learning rate", message, f"{suited} or a lower --base-lr")
    message = (
        f"the learning rate is {plan.lr:.2g}: --base-lr {config.base_lr:g} is for batches of thousands, "
        f"and yours is {plan.effective_batch:,}"
    )
    batches = RECIPE_BATCH * plan.accum_iter // plan.effective_batch
    if plan.images // RECIPE_BATCH * config.epochs >= ENOUGH_STEPS:
        return Advice("learning rate", message, f"--accum-iter {batches} for the recipe's batch, or {suited}")
    return Advice("learning rate", message, _or_preset(config, plan, suited))


def _check_model_size(config: PretrainConfig, plan: TrainingPlan) -> Advice | None:
    parameters = count_parameters(config.model_config()).trainable
    smaller = [name for name in VARIANTS if count_parameters(variant_config(name)).trainable < 0.9 * parameters]
    if config.init is not None or not smaller or parameters <= MOST_PARAMETERS_PER_IMAGE * plan.images:
        return None
    fitting = [
        name
        for name in smaller
        if count_parameters(variant_config(name)).trainable <= MOST_PARAMETERS_PER_IMAGE * plan.images
    ]
    each = f"{parameters / 1e6:,.0f} million parameters for {plan.images:,} images are {parameters / plan.images:,.0f}"
    message = f"{each} for each; the published ViT-L had 257"
    suited = f"--variant {fitting[-1] if fitting else smaller[0]}"
    return Advice("model size", message, _or_preset(config, plan, f"{suited}, or --init from pre-trained weights"))


def _or_preset(config: PretrainConfig, plan: TrainingPlan, options: str) -> str:
    """With few images the preset is the first thing to try, unless its model is taken already."""
    if plan.images > SMALL_DATA or config.variant == PRESETS["small"].values["variant"]:
        return options
    return f"--preset small, or {options}"
