"""The plan of a run, computed before it starts. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from mae.errors import ConfigError, DataError
from mae.models import VARIANTS, variant_config
from mae.models.parameters import count_parameters
from mae.training.classifier_config import RunConfig
from mae.training.config import PretrainConfig
from mae.training.presets import PRESETS
from mae.training.schedule import Schedule, scaled_lr

RECIPE_BATCH = 4096  # Paper: Appendix A.1, Table 8; its learning rate there is 2.4e-3
RECIPE_LR = 2.4e-3

# Rules of thumb; docs/choosing.md gives the source of each.
FEWEST_STEPS = 1_000  # memorising fifteen photographs took 1,600
ENOUGH_STEPS = 10_000
LEAST_LR, MOST_LR = 1e-4, 6e-3  # learning rates of a run from scratch with AdamW
MOST_PARAMETERS_PER_IMAGE = 5_000  # as ViT-B has on 22,000 images; the published ViT-L on ImageNet has 257
LONGEST_WARM_UP = 0.2  # fraction of the run; 0.05 in the recipe
SMALL_DATA = 10_000  # largest number of images for which the preset is suggested
MOST_CPU_HOURS = 12.0


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """Numbers of a run that follow from its settings and its images.

    Attributes:
        images: Number of training images.
        global_batch_size: Images per batch over all processes, before accumulation: ``--batch-size`` times the number
            of processes, or fewer if there are not so many images.
        accum_iter: Batches whose gradients are accumulated for one optimiser step.
        schedule: The learning rate over the run.
        seed: Seed of the order of the images, and of everything else that is random.
        images_digest: Hash of the images' names, by which a resumed run checks that it has the same images.
        warnings: Settings that cannot be used as given, and what is used instead.
    """

    images: int
    global_batch_size: int
    accum_iter: int
    schedule: Schedule
    seed: int = 0
    images_digest: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def effective_batch_size(self) -> int:
        """Images whose gradients are averaged in one optimiser step."""
        return self.global_batch_size * self.accum_iter

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.schedule.lr

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.schedule.epochs

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in an epoch; the remaining images are not used in it."""
        return self.images // self.global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch; the last one may accumulate fewer batches."""
        return math.ceil(self.batches_per_epoch / self.accum_iter)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def batches_left(self, step: int) -> int:
        """Batches from a step to the end of the run; the last step of an epoch may have fewer than the others."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return (self.epochs - epochs) * self.batches_per_epoch - steps * self.accum_iter

    def identity(self) -> dict[str, Any]:
        """The values on which the losses of any task depend, and which must not change on resuming."""
        return {
            "images": self.images,
            "images_digest": self.images_digest,
            "batch_size": self.global_batch_size,  # the global batch size; saved states use this name
            "accum_iter": self.accum_iter,
            "seed": self.seed,
        }


def make_plan(
    config: RunConfig, images: int, digest: str = "", *, processes: int = 1, global_batch_size: int | None = None
) -> TrainingPlan:
    """Compute the plan of a run.

    Args:
        config: Its settings.
        images, digest: Number of images, and hash of their names.
        processes: Number of processes that share each batch.
        global_batch_size: Images per batch over all processes, as recorded by a resumed run; None for a new run.

    Raises:
        DataError: There are too few images for the processes.
        ConfigError: The batch of a resumed run cannot be shared by the processes.
    """
    warnings = []
    size = global_batch_size or config.batch_size * processes
    each = "" if config.least_batch == 1 else f" with at least {config.least_batch} images each"
    if images < size:
        if images < config.least_batch * processes:
            raise DataError(f"{images} images are too few for {processes} processes{each}")
        divisible = images - images % processes
        warnings.append(f"{images} images do not fill a batch of {size}; the batch is {divisible}")
        size = divisible
    if size % processes or size < config.least_batch * processes:  # only a resumed run's
        raise ConfigError(
            f"a batch of {size} images cannot be shared equally by {processes} processes{each}",
            hint="start fewer processes, as many as divide it",
        )
    batches = images // size
    accum_iter = min(config.accum_iter, batches)
    if accum_iter < config.accum_iter:
        warnings.append(
            f"an epoch has only {batches} batches, so {accum_iter} instead of {config.accum_iter} are accumulated"
        )
    if config.warmup_epochs >= config.epochs:
        warnings.append(
            f"the warm-up ({config.warmup_epochs:g} epochs) is longer than the run ({config.epochs}), so the learning "
            f"rate never reaches its peak; the recipe's fraction (5%) is --warmup-epochs {config.epochs * 0.05:.2g}"
        )
    lr = config.lr if config.lr is not None else scaled_lr(config.base_lr, size * accum_iter)
    if config.min_lr > lr:
        warnings.append(f"--min-lr {config.min_lr:g} is above the peak learning rate {lr:.3g}")
    schedule = Schedule(lr, config.min_lr, config.warmup_epochs, config.epochs)
    return TrainingPlan(images, size, accum_iter, schedule, config.seed, digest, tuple(warnings))


@dataclasses.dataclass(frozen=True)
class Advice:
    """Warning about a setting that is likely to give a poor result, although training with it is possible.

    Attributes:
        check: Name of the check: ``steps``, ``warm-up``, ``learning rate``, ``model size`` or ``time``.
        message: Description of the problem.
        options: Options to use instead, as typed on the command line.
    """

    check: str
    message: str
    options: str


def check_plan(config: PretrainConfig, plan: TrainingPlan, seconds: float = 0.0) -> tuple[Advice, ...]:
    """Compare the plan of a new run with what is known to work.

    Args:
        config: The settings of the run.
        plan: Its plan.
        seconds: Estimated duration of the run.
    """
    preset = plan.images <= SMALL_DATA and config.variant != PRESETS["small"].values["variant"]
    first = "--preset small, or " if preset else ""
    found = [_check_steps(plan), _check_warm_up(plan.schedule)]
    if config.init is None:
        if config.lr is None:
            found.append(_check_lr(plan, config.base_lr, first))
        found.append(_check_model_size(count_parameters(config.model_config()).trainable, plan.images, first))
    if config.device == "cpu":
        found.append(_check_time(seconds / 3600, plan.epochs, first))
    return tuple(advice for advice in found if advice is not None)


def _check_steps(plan: TrainingPlan) -> Advice | None:
    if plan.total_steps >= FEWEST_STEPS:
        return None
    epochs = f"--epochs {math.ceil(FEWEST_STEPS / plan.steps_per_epoch)}"
    fewer = f"--accum-iter 1 or {epochs}" if plan.accum_iter > 1 else epochs
    message = f"{plan.total_steps:,} steps in all; a model shows little after fewer than {FEWEST_STEPS:,}"
    return Advice("steps", message, fewer)


def _check_warm_up(schedule: Schedule) -> Advice | None:
    share = schedule.warmup_epochs / schedule.epochs
    if not LONGEST_WARM_UP < share < 1:  # ``make_plan`` warns of one that is longer than the run
        return None
    message = f"the warm-up ({schedule.warmup_epochs:g} epochs) is {share:.0%} of the run; the recipe's is 5%"
    return Advice("warm-up", message, f"--warmup-epochs {schedule.epochs * 0.05:.2g}")


def _check_lr(plan: TrainingPlan, base_lr: float, first: str) -> Advice | None:
    if LEAST_LR <= plan.lr <= MOST_LR:
        return None
    # Gradient noise falls with the square root of the batch size, and AdamW normalises the gradient by its size, so the
    # learning rate is scaled with the square root too.
    suited = f"--lr {RECIPE_LR * math.sqrt(plan.effective_batch_size / RECIPE_BATCH):.1g}"
    rate = f"the learning rate is {plan.lr:.2g}"
    if plan.lr > MOST_LR:
        message = f"{rate} for a batch of {plan.effective_batch_size:,}; above {MOST_LR:g} training usually diverges"
        return Advice("learning rate", message, f"{suited} or a lower --base-lr")
    message = f"{rate}: --base-lr {base_lr:g} is meant for batches of thousands, not {plan.effective_batch_size:,}"
    batches = RECIPE_BATCH * plan.accum_iter // plan.effective_batch_size
    if plan.images // RECIPE_BATCH * plan.epochs >= ENOUGH_STEPS:
        return Advice("learning rate", message, f"--accum-iter {batches} for the recipe's batch, or {suited}")
    return Advice("learning rate", message, first + suited)


def _check_model_size(parameters: int, images: int, first: str) -> Advice | None:
    if parameters <= MOST_PARAMETERS_PER_IMAGE * images:
        return None
    sizes = {name: count_parameters(variant_config(name)).trainable for name in VARIANTS}
    smaller = [name for name, size in sizes.items() if size < 0.9 * parameters]
    if not smaller:
        return None
    fitting = [name for name in smaller if sizes[name] <= MOST_PARAMETERS_PER_IMAGE * images]
    each = f"{parameters / 1e6:,.0f} million parameters for {images:,} images are {parameters / images:,.0f}"
    message = f"{each} per image; the published ViT-L had 257"
    suited = f"--variant {fitting[-1] if fitting else smaller[0]}"
    return Advice("model size", message, f"{first}{suited}, or --init from pre-trained weights")


def _check_time(hours: float, epochs: int, first: str) -> Advice | None:
    if hours <= MOST_CPU_HOURS:
        return None
    fewer = f"--epochs {max(1, int(epochs * MOST_CPU_HOURS / hours))} for {MOST_CPU_HOURS:g} hours"
    return Advice(
        "time", f"about {hours:,.0f} hours on a CPU", f"{first}{fewer}, or a smaller --variant or --image-size"
    )
