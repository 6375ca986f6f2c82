"""How much memory training and inference take, computed from sizes alone. Standard library only.

The estimate is of the tensors that are alive at once on the device, from the first weight to the last
temporary: what CUDA's allocator calls allocated. It covers weights and position tables, gradients, AdamW's
two moments, the batch, everything autograd keeps and what passes through. What no tensor of the step holds is
apart: ``process_bytes`` on a CPU; on a GPU CUDA's context, the kernels' workspaces and the gaps an allocator
leaves are left to ``fit``'s reserve and margin.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mae.config import MAEConfig
from mae.models.parameters import count_parameters
from mae.profiling.tape import FLOAT, Tape, playback_peak
from mae.profiling.training_path import own_forward_end, own_tape

RECIPE_BATCH = 4096  # Paper: Appendix A.1, Table 8
FIT_MARGINS = {"cuda": 0.10, "mps": 0.10, "cpu": 0.10}  # gaps between tensors, and what the estimate is wrong by
FIT_RESERVE_BYTES = 10**9  # of a GPU: the device's context and the kernels' workspaces
# Measured on ``pretrain`` itself: see docs/profile.md.
PROCESS_BYTES = 7 * 10**8  # Python, torch and what else is loaded, and the buffers of a first step
KEPT_HEAP = {"fp32": 0.05, "bf16": 0.14, "fp16": 0.14}  # of the live tensors' peak; glibc keeps freed memory, for speed
_COPY_OF_STATE = 3  # weights and AdamW's moments, copied so that a save need not stop training
ONEDNN_BYTES = 40 * 10**6  # measured: kernels and buffers that 16-bit training on a CPU leaves behind, at any batch
_ADAMW_TEMPORARIES = 3  # of the size of one weight, where AdamW goes through them one by one


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step over a batch.

    Attributes:
        weights: Parameters and position tables, float32.
        gradients: Of all trained parameters, float32.
        optimizer: AdamW's two moments.
        images: The batch, as bytes and as the floats that the model is given.
        activations: What autograd keeps at the end of the forward pass, 16-bit copies of weights included.
        peak: The most at once. Less than the sum of the parts: activations go while gradients come.
    """

    weights: int
    gradients: int
    optimizer: int
    images: int
    activations: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """What fits in some memory.

    Attributes:
        memory_bytes: The memory, of which a margin and a reserve are kept free.
        largest_batch: The largest batch that fits, up to the recipe's 4096 on all devices; 0 if none fits.
        limited_by: ``recipe`` where it is those 4096 that the batch ends at and more would fit, else ``memory``.
        batch_size, accum_iter: A batch that fits and how many of them (on every device) make ``effective_batch``.
        peak_bytes: The estimate for ``batch_size``; on a CPU of the whole process.
    """

    memory_bytes: int
    largest_batch: int
    limited_by: str
    batch_size: int
    accum_iter: int
    effective_batch: int
    peak_bytes: int


def training_memory(
    config: MAEConfig,
    kept: int,
    batch: int,
    precision: str,
    device: str,
    *,
    activation_checkpointing: bool = False,
    accumulate: bool = False,
) -> TrainingMemory:
    """Estimate a training step of ``MaskedAutoencoder.pretraining_loss`` with AdamW.

    Args:
        config: The model's sizes.
        kept: K, the visible patches.
        batch: B, images.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: ``cuda``, ``mps`` or ``cpu``.
        activation_checkpointing: Activation checkpointing: blocks keep their input only.
        accumulate: Whether gradients of earlier batches are there already during the forward pass.
    """
    counts = count_parameters(config)
    gradients = counts.trainable * FLOAT
    floats = _images(config, batch)
    images = floats // FLOAT
    tape = own_tape(config, kept, batch, precision, device, activation_checkpointing=activation_checkpointing)
    cached = (
        tape.cast_weights if activation_checkpointing else 0
    )  # autocast holds on to them until the forward pass ends
    forward = floats + tape.kept + cached + own_forward_end(config, kept, batch) + (gradients if accumulate else 0)
    backward = playback_peak(tape.steps, accumulate=accumulate)
    update = gradients + _optimizer_passing(config, device)
    held = ONEDNN_BYTES if tape.half and device == "cpu" else tape.scratch
    fixed = counts.total * FLOAT + 2 * gradients + images + held
    return TrainingMemory(
        weights=counts.total * FLOAT,
        gradients=gradients,
        optimizer=2 * gradients,
        images=images + floats,
        activations=tape.kept,
        peak=fixed + max(forward, backward, update),
    )


def process_bytes(config: MAEConfig, peak: int, precision: str, device: str) -> int:
    """What ``pretrain``'s process holds on a CPU beside the tensors of a step, so that both together are its memory.

    Python, torch and their like, the freed memory that its heap keeps, and the copy of the state that is being saved.
    Loader processes come on top. 0 on other devices: there the process lies in another memory.

    Args:
        config: The model's sizes.
        peak: ``TrainingMemory.peak``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: ``cuda``, ``mps`` or ``cpu``.
    """
    if device != "cpu":
        return 0
    return PROCESS_BYTES + _COPY_OF_STATE * count_parameters(config).total * FLOAT + round(KEPT_HEAP[precision] * peak)


def inference_peak(config: MAEConfig, batch: int, precision: str, device: str) -> int:
    """Bytes that ``MaskedAutoencoder.encode`` takes for whole images without gradients, all weights included."""
    tape = Tape(batch, precision, device)
    tokens, width = 1 + config.num_patches, config.embed_dim
    hidden = int(width * config.mlp_ratio)
    streams = 5 * tokens * width * FLOAT  # the tokens, with the class token, around attention, and normalised
    weights = 0 if tape.fused_attention else 2 * config.num_heads * tokens**2 * tape.size
    in_attention = streams + 5 * tokens * width * tape.size + weights
    in_mlp = streams + tokens * (2 * hidden + width * (2 if tape.half else 1)) * tape.size
    return (
        count_parameters(config).total * FLOAT
        + (width * max(hidden, 3 * width) * tape.size if tape.half else 0)  # one weight at a time is cast
        + _images(config, batch)
        + batch * max(in_attention, in_mlp)
    )


def _images(config: MAEConfig, batch: int) -> int:
    """Bytes of a batch in float32."""
    return batch * config.in_chans * config.img_size[0] * config.img_size[1] * FLOAT


def _optimizer_passing(config: MAEConfig, device: str) -> int:
    """On CUDA one fused kernel updates everything; elsewhere weights are gone through one by one."""
    if device == "cuda":
        return 0
    width, inner = config.embed_dim, config.decoder_embed_dim
    largest = max(
        config.patch_dim * max(width, inner),
        *(side * max(3 * side, int(side * config.mlp_ratio)) for side in (width, inner)),
    )
    return _ADAMW_TEMPORARIES * largest * FLOAT


def fit(
    config: MAEConfig,
    kept: int,
    memory_bytes: int,
    precision: str,
    device: str,
    *,
    gpus: int = 1,
    activation_checkpointing: bool = False,
) -> Fit:
    """The largest training batch in some memory, and how to reach the recipe's effective batch with it.

    Gradients are taken to accumulate. ``batch_size`` is the largest power of two that fits, as those divide 4096.

    Args:
        config, kept, precision, device, activation_checkpointing: As ``training_memory``.
        memory_bytes: Memory of one device.
        gpus: Devices that share the effective batch.
    """
    reserve = 0 if device == "cpu" else FIT_RESERVE_BYTES  # a CPU's process is in the estimate
    allowed = (memory_bytes - reserve) / (1 + FIT_MARGINS[device])

    def peak(batch: int) -> int:
        estimate = training_memory(
            config, kept, batch, precision, device, activation_checkpointing=activation_checkpointing, accumulate=True
        )
        return estimate.peak + process_bytes(config, estimate.peak, precision, device)

    most = max(1, RECIPE_BATCH // gpus)
    largest = _largest(peak, allowed, most)
    if largest == 0:
        return Fit(memory_bytes, 0, "memory", 0, 0, 0, peak(1))
    limited_by = "recipe" if largest == most else "memory"
    batch = 1 << (largest.bit_length() - 1)
    accum = max(1, round(RECIPE_BATCH / (batch * gpus)))
    return Fit(memory_bytes, largest, limited_by, batch, accum, batch * accum * gpus, peak(batch))


def _largest(peak: Callable[[int], int], allowed: float, most: int) -> int:
    """The largest batch up to ``most`` whose peak is allowed; 0 if none is.

    The peak grows almost linearly with the batch, so a line through two batches leads to it in a few steps.
    """
    high, above = most, peak(most)
    if above <= allowed:
        return most
    low, below = 1, peak(1)
    if below > allowed:
        return 0
    while high - low > 1:
        guess = low + int((allowed - below) / (above - below) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        taken = peak(guess)
        if taken <= allowed:
            low, below = guess, taken
        else:
            high, above = guess, taken
    return low
