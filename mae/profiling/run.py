"""The use case ``profile``. Loads no torch; separate processes measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from mae.config import MAEConfig, format_size
from mae.io.notebook import DrawnPage, Table
from mae.models.parameters import ParameterCounts, count_parameters, module_parameters
from mae.profiling.accelerators import Accelerator, Check, find_accelerator
from mae.profiling.config import ProfileConfig
from mae.profiling.flops import Compute, encoder_compute, official_compute, total
from mae.profiling.memory import Fit, TrainingMemory, fit, inference_peak, process_bytes, training_memory
from mae.profiling.plan import RunPlan, plan_from_flops, plan_from_rate
from mae.profiling.training_path import own_compute

if TYPE_CHECKING:
    from mae.profiling.measured import Measured, MeasuredDevice

DEFAULT_BATCH = 64
DEFAULT_BATCH_MEASURED_ON_CPU = 8


@dataclasses.dataclass(frozen=True)
class ComputePerImage:
    """FLOPs (2 x MACs) of matrix products, attention's included, for one image.

    Attributes:
        encoder: Forward over the visible patches, with the projection of all patches.
        decoder: Forward over all patches.
        forward: Both: the official model's forward.
        training_step: The official forward and its backward pass.
        own_forward, own_training_step: The same loss and gradients as ``pretrain`` computes them, per image
            of a batch.
        whole_encoder: Forward of the encoder on all patches: what a user of the features pays.
    """

    encoder: int
    decoder: int
    forward: int
    training_step: int
    own_forward: int
    own_training_step: int
    whole_encoder: int

    @property
    def saving(self) -> float:
        """Ratio of forward FLOPs with mask tokens in the encoder to those without (Paper: Table 2)."""
        return (self.whole_encoder + self.decoder) / self.forward


@dataclasses.dataclass(frozen=True)
class ModuleCost:
    """Parameters of a module, and FLOPs of the official forward and training step for one image."""

    name: str
    parameters: int
    forward: int
    training_step: int


@dataclasses.dataclass(frozen=True)
class VariantProfile:
    """Cost of a variant.

    Attributes:
        kept: K, the visible patches.
        training: Memory of a training step; ``checkpointed_training`` with activation checkpointing.
        training_process: Bytes of a training run's whole process on a CPU, ``training.peak`` included; None elsewhere.
        inference_peak: Bytes of ``encode`` on the batch.
        fit, checkpointed_fit: What fits in the given memory; None without one.
        plan: None unless a GPU is named or a rate was measured.
        modules: Empty without ``--depth``.
    """

    variant: str
    model: MAEConfig
    kept: int
    parameters: ParameterCounts
    compute: ComputePerImage
    training: TrainingMemory
    checkpointed_training: TrainingMemory
    training_process: int | None
    inference_peak: int
    fit: Fit | None
    checkpointed_fit: Fit | None
    plan: RunPlan | None
    modules: tuple[ModuleCost, ...]
    measured: Measured | None


@dataclasses.dataclass(frozen=True)
class ProfileResult(DrawnPage):
    """Cost of the variants, and the conditions that the numbers hold for; a notebook shows the main ones."""

    image_size: tuple[int, int]
    in_chans: int
    mask_ratio: float
    batch_size: int
    precision: str
    device: str
    machine: MeasuredDevice | None
    variants: tuple[VariantProfile, ...]
    notes: tuple[str, ...]

    def _table(self) -> Table:
        figures: dict[str, Callable[[VariantProfile], object]] = {
            "parameters, millions": lambda one: one.parameters.total / 1e6,
            "of these in the encoder": lambda one: one.parameters.encoder / 1e6,
            "forward, GFLOPs an image": lambda one: one.compute.forward / 1e9,
            "training step, GFLOPs an image": lambda one: one.compute.training_step / 1e9,
            "memory of training, GB": lambda one: one.training.peak / 1e9,
            "with activation checkpointing, GB": lambda one: one.checkpointed_training.peak / 1e9,
            "memory of encode, GB": lambda one: one.inference_peak / 1e9,
        }
        if any(one.measured and one.measured.training_step for one in self.variants):
            figures["training, images/s here"] = lambda one: (
                one.measured.training_step.images_per_second if one.measured and one.measured.training_step else None
            )
        return Table(
            f"{format_size(self.image_size)} px, {self.mask_ratio:.0%} masked; batch {self.batch_size}, "
            f"{self.precision} on {self.device}",
            [(label, *(figure(one) for one in self.variants)) for label, figure in figures.items()],
            ("", *(one.variant for one in self.variants)),
        )


def profile(config: ProfileConfig) -> ProfileResult:
    """Compute the cost of variants, and measure it if ``config.measure`` is set.

    Raises:
        ConfigError: The device is not there or does not compute in that precision.
        TrainingError: The speed of the machine could not be measured.
    """
    machine = None
    if config.measure:
        from mae.profiling.measured import measure_machine

        machine = measure_machine(config.device, config.precision)
    device = machine.device if machine else config.assumed_device
    precision = machine.precision if machine else config.assumed_precision
    small = machine is not None and device == "cpu"
    batch = config.batch_size or (DEFAULT_BATCH_MEASURED_ON_CPU if small else DEFAULT_BATCH)
    conditions = _Conditions(config, device, precision, batch, machine)
    variants = tuple(_profile_variant(name, model, conditions) for name, model in config.models())
    return ProfileResult(
        image_size=config.image_size,
        in_chans=config.in_chans,
        mask_ratio=config.mask_ratio,
        batch_size=batch,
        precision=precision,
        device=device,
        machine=machine,
        variants=variants,
        notes=tuple(_notes(config, variants)),
    )


def _notes(config: ProfileConfig, variants: Sequence[VariantProfile]) -> Iterator[str]:
    """Notes on the numbers."""
    if not config.variant:
        yield from (f"skipped {name}: {reason}" for name, reason in config.left_out())
    accelerator = None if config.gpu is None else find_accelerator(config.gpu)
    if accelerator is not None and accelerator.bf16 is None and config.precision == "auto":
        yield (
            f"{accelerator.title} does not multiply in bf16, so pretrain takes fp32 there ({accelerator.fp32:g} "
            f"TFLOP/s at most): --precision fp16 plans for its {accelerator.fp16:g}; a non-finite loss is more "
            "likely then"
        )
    if accelerator is not None and accelerator.check == Check.UNVERIFIED:
        yield f"{accelerator.title}: its rates, memory and power are not verified: check them first"
    for one in variants:
        if one.measured and one.measured.unsteady:
            yield f"{one.variant}: runs of the same thing took very different times; is something else busy here?"


@dataclasses.dataclass(frozen=True)
class _Conditions:
    config: ProfileConfig
    device: str
    precision: str
    batch: int
    machine: MeasuredDevice | None

    @property
    def accelerator(self) -> Accelerator | None:
        return None if self.config.gpu is None else find_accelerator(self.config.gpu)

    @property
    def memory_bytes(self) -> int | None:
        if self.config.fit is not None:
            return self.config.fit
        return self.accelerator.memory_bytes if self.accelerator else None


def _profile_variant(name: str, model: MAEConfig, conditions: _Conditions) -> VariantProfile:
    config, batch = conditions.config, conditions.batch
    precision, device = conditions.precision, conditions.device
    kept = model.num_kept(config.mask_ratio)
    compute = compute_per_image(model, kept, batch)
    measured = _measure(model, compute, conditions)
    fits: list[Fit | None] = [None, None]
    if conditions.memory_bytes is not None:
        fits = [
            fit(
                model,
                kept,
                conditions.memory_bytes,
                precision,
                device,
                gpus=config.gpus,
                activation_checkpointing=activation_checkpointing,
            )
            for activation_checkpointing in (False, True)
        ]
    training = training_memory(model, kept, batch, precision, device)
    process = process_bytes(model, training.peak, precision, device)
    return VariantProfile(
        variant=name,
        model=model,
        kept=kept,
        parameters=count_parameters(model),
        compute=compute,
        training=training,
        checkpointed_training=training_memory(model, kept, batch, precision, device, activation_checkpointing=True),
        training_process=training.peak + process if process else None,
        inference_peak=inference_peak(model, batch, precision, device),
        fit=fits[0],
        checkpointed_fit=fits[1],
        plan=_plan(compute, measured, conditions),
        modules=() if config.depth is None else module_costs(model, kept, config.depth),
        measured=measured,
    )


def compute_per_image(model: MAEConfig, kept: int, batch: int) -> ComputePerImage:
    """FLOPs for one image; ``batch`` matters to the own training path, part of which is shared by a batch."""
    official = official_compute(model, kept)
    whole, decoder = total(official), total(official, "decoder.").forward
    own = total(own_compute(model, kept, batch))
    every_patch = total(encoder_compute(model, embedded=model.num_patches, encoded=model.num_patches)).forward
    return ComputePerImage(
        encoder=whole.forward - decoder,
        decoder=decoder,
        forward=whole.forward,
        training_step=whole.step,
        own_forward=round(own.forward / batch),
        own_training_step=round(own.step / batch),
        whole_encoder=every_patch,
    )


def module_costs(model: MAEConfig, kept: int, depth: int) -> tuple[ModuleCost, ...]:
    """Parameters and official FLOPs per module, names cut after ``depth`` levels, in the model's order."""
    parameters, compute = module_parameters(model), official_compute(model, kept)
    values: dict[str, int] = {}
    operations: dict[str, Compute] = {}
    for name in [*parameters, *compute]:
        group = ".".join(name.split(".")[:depth])
        values.setdefault(group, 0)
        operations.setdefault(group, Compute())
    for name, count in parameters.items():
        values[".".join(name.split(".")[:depth])] += count
    for name, share in compute.items():
        operations[".".join(name.split(".")[:depth])] += share
    return tuple(ModuleCost(name, values[name], operations[name].forward, operations[name].step) for name in values)


def _measure(model: MAEConfig, compute: ComputePerImage, conditions: _Conditions) -> Measured | None:
    if conditions.machine is None:
        return None
    from mae.profiling.measured import measure_model

    return measure_model(
        model,
        conditions.machine,
        mask_ratio=conditions.config.mask_ratio,
        batch=conditions.batch,
        repeats=conditions.config.repeats,
        operations={
            "latency": compute.whole_encoder,
            "encode": compute.whole_encoder,
            "forward": compute.forward,
            "training_step": compute.own_training_step,
        },
    )


def _plan(compute: ComputePerImage, measured: Measured | None, conditions: _Conditions) -> RunPlan | None:
    """Plan from the measured throughput, unless it was measured on a CPU and a GPU is named."""
    accelerator, machine, config = conditions.accelerator, conditions.machine, conditions.config
    rate = measured.training_step if measured else None
    if machine is not None and rate is not None and (accelerator is None or machine.device == "cuda"):
        return plan_from_rate(rate.images_per_second, machine.name, machine.precision, config, accelerator=accelerator)
    if accelerator is None:
        return None
    return plan_from_flops(compute.own_training_step, accelerator, config.assumed_precision, config)
