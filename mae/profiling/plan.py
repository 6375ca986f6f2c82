"""Duration and cost of a run, from FLOPs or from a measured throughput. Standard library only."""

from __future__ import annotations

import dataclasses

from mae.profiling.accelerators import Accelerator
from mae.profiling.config import ProfileConfig

SECONDS_PER_HOUR = 3600
HOURS_PER_DAY = 24


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A whole pre-training run on some accelerators.

    Attributes:
        source: ``flops``: peak rate times an assumed share of it; ``measured``: the rate measured here.
        accelerator: What it runs on.
        precision: What its matrix products are in.
        figures, figures_source: How the accelerator's figures were checked (``accelerators.Check``), and the maker's
            document that holds them; None where the rate was measured and no accelerator is named.
        mfu: The assumed share of the peak rate; None for a measured rate.
        images_per_second: Of one accelerator; several are taken to scale without loss.
        gpu_hours: Accelerators times hours.
        energy_kwh: Accelerators alone at their full design power, without hosts and cooling; None if unknown.
        cost: In the currency of the price; None without a price.
    """

    source: str
    accelerator: str
    precision: str
    figures: str | None
    figures_source: str | None
    gpus: int
    images: int
    epochs: int
    mfu: float | None
    images_per_second: float
    hours: float
    days: float
    gpu_hours: float
    energy_kwh: float | None
    cost: float | None


def plan_from_flops(step_flops: float, accelerator: Accelerator, precision: str, config: ProfileConfig) -> RunPlan:
    """Plan from what one image's training step multiplies and what the accelerator can.

    Args:
        step_flops: Operations of a training step per image.
        accelerator: Peak rates and power.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        config: The run, and the share of the peak rate that ``step_flops`` are taken to reach.

    Raises:
        ConfigError: The accelerator does not compute in that precision.
    """
    rate = accelerator.peak_flops(precision) * config.mfu / step_flops
    return _plan("flops", accelerator.title, precision, rate, config, mfu=config.mfu, accelerator=accelerator)


def plan_from_rate(
    images_per_second: float, device: str, precision: str, config: ProfileConfig, *, accelerator: Accelerator | None
) -> RunPlan:
    """Plan from the rate of a training step that was measured on one device.

    Args:
        images_per_second: That rate.
        device: Its name.
        precision: What it computed in.
        config: The run.
        accelerator: What the device is, for its power; None if unknown.
    """
    return _plan("measured", device, precision, images_per_second, config, mfu=None, accelerator=accelerator)


def _plan(
    source: str,
    device: str,
    precision: str,
    rate: float,
    config: ProfileConfig,
    *,
    mfu: float | None,
    accelerator: Accelerator | None,
) -> RunPlan:
    gpu_hours = config.images * config.epochs / rate / SECONDS_PER_HOUR
    return RunPlan(
        source=source,
        accelerator=device,
        precision=precision,
        figures=None if accelerator is None else str(accelerator.check),
        figures_source=None if accelerator is None else accelerator.source,
        gpus=config.gpus,
        images=config.images,
        epochs=config.epochs,
        mfu=mfu,
        images_per_second=rate,
        hours=gpu_hours / config.gpus,
        days=gpu_hours / config.gpus / HOURS_PER_DAY,
        gpu_hours=gpu_hours,
        energy_kwh=None if accelerator is None else gpu_hours * accelerator.watts / 1000,
        cost=None if config.price is None else gpu_hours * config.price,
    )
