"""The memory estimate against what autograd really keeps, against processes' real peaks, and by property."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae.config import MAEConfig
from mae.models import create_model, variant_config
from mae.models.parameters import count_parameters
from mae.profiling.measured import MeasuredDevice, measure_training_peak
from mae.profiling.memory import (
    FIT_MARGINS,
    FIT_RESERVE_BYTES,
    KEPT_HEAP,
    PROCESS_BYTES,
    fit,
    inference_peak,
    process_bytes,
    training_memory,
)
from mae.profiling.tape import Step, Tape, playback_peak
from mae.profiling.training_path import own_tape
from tests.e2e.documents import ROOT
from tests.processes import finish, start_python

GB = 10**9
SMALL = variant_config("vit_tiny", img_size=64, patch_size=8, depth=3, decoder_depth=3)
CASES = {
    "small": (SMALL, 0.75),
    "rectangle": (SMALL.replace(img_size=(32, 96)), 0.6),
    "many heads": (SMALL.replace(num_heads=12, decoder_num_heads=12), 0.75),
    "four channels, other MLP": (SMALL.replace(in_chans=4, mlp_ratio=2.5), 0.75),
    "two decoder blocks": (SMALL.replace(decoder_depth=2), 0.9),
}


def kept_by_autograd(
    config: MAEConfig, ratio: float, batch: int, precision: str, *, activation_checkpointing: bool
) -> int:
    """Bytes of all storages that the backward pass will need, weights and position tables left out."""
    torch.manual_seed(0)
    model = create_model(config)
    model.set_activation_checkpointing(activation_checkpointing)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # holding on to it, so that no address comes twice
        return tensor

    imgs = torch.rand(batch, config.in_chans, *config.img_size)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model.pretraining_loss(imgs, ratio)
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_activations_are_those_that_autograd_keeps(case: str, precision: str) -> None:
    config, ratio = CASES[case]
    tape = own_tape(config, config.num_kept(ratio), 4, precision, "cpu")
    assert tape.kept == pytest.approx(
        kept_by_autograd(config, ratio, 4, precision, activation_checkpointing=False), rel=0.01
    )


def test_recomputing_keeps_the_inputs_of_blocks() -> None:
    kept = SMALL.num_kept(0.75)
    tape = own_tape(SMALL, kept, 8, "fp32", "cpu", activation_checkpointing=True)
    assert tape.kept == pytest.approx(kept_by_autograd(SMALL, 0.75, 8, "fp32", activation_checkpointing=True), rel=0.01)
    full = training_memory(SMALL, kept, 64, "fp32", "cpu")
    less = training_memory(SMALL, kept, 64, "fp32", "cpu", activation_checkpointing=True)
    assert less.activations < full.activations / 4
    assert less.peak < full.peak


def test_playback_by_hand() -> None:
    steps = [Step(kept=10, gradients=1), Step(kept=20, gradients=5, passing=7), Step(kept=1, gradients=100)]
    # Last to first: 31 + 100, then 30 + 105 + 7, then 10 + 106.
    assert playback_peak(steps) == 142
    # All 106 are there from the start and each new one comes on top: 31 + 106 + 100.
    assert playback_peak(steps, accumulate=True) == 237
    assert playback_peak([]) == 0


def test_the_fused_kernel_keeps_no_attention_weights() -> None:
    kept = {}
    for device, precision in (("cuda", "bf16"), ("cpu", "bf16"), ("cpu", "fp32")):
        tape = Tape(2, precision, device)
        tape.attention(queries=10, keys=20, width=32, heads=4)
        kept[device, precision] = tape.kept
    shared = 2 * (10 + 2 * 20 + 10) * 32
    assert kept["cuda", "bf16"] == shared * 2 + 2 * 4 * 10 * 4
    assert kept["cpu", "fp32"] == shared * 4 + 2 * 4 * 10 * 4
    assert kept["cpu", "bf16"] == shared * 2 + 2 * 4 * 10 * 20 * 2


def test_fixed_parts_are_exact() -> None:
    config = variant_config("vit_large")
    memory = training_memory(config, 49, 64, "bf16", "cuda")
    counts = count_parameters(config)
    assert memory.weights == 4 * counts.total
    assert memory.gradients == 4 * counts.trainable
    assert memory.optimizer == 8 * counts.trainable
    assert memory.images == 64 * 3 * 224 * 224 * (4 + 1)
    assert memory.weights + memory.optimizer + memory.images + memory.activations < memory.peak
    assert memory.peak < sum(dataclasses.astuple(memory)[:-1])


def test_more_takes_more() -> None:
    config, peaks = variant_config("vit_base"), []
    for batch in (1, 2, 64, 256):
        peaks.append(training_memory(config, 49, batch, "bf16", "cuda").peak)
        assert training_memory(config, 49, batch, "fp32", "cuda").activations > 0
    assert peaks == sorted(peaks)
    at = {"config": config, "kept": 49, "batch": 64, "device": "cuda"}
    assert training_memory(precision="bf16", **at).peak < training_memory(precision="fp32", **at).peak  # type: ignore[arg-type]
    assert training_memory(precision="bf16", accumulate=True, **at).peak > training_memory(precision="bf16", **at).peak  # type: ignore[arg-type]
    assert inference_peak(config, 64, "bf16", "cuda") < peaks[2]


def test_fit_is_the_largest_that_fits() -> None:
    config = variant_config("vit_large")
    one = fit(config, 49, 24 * GB, "bf16", "cuda")

    def fits(batch: int) -> bool:
        peak = training_memory(config, 49, batch, "bf16", "cuda", accumulate=True).peak
        return peak * (1 + FIT_MARGINS["cuda"]) + FIT_RESERVE_BYTES <= 24 * GB

    assert fits(one.largest_batch)
    assert not fits(one.largest_batch + 1)
    assert one.batch_size <= one.largest_batch < 2 * one.batch_size
    assert one.batch_size * one.accum_iter == one.effective_batch == 4096
    assert fit(config, 49, 24 * GB, "bf16", "cuda", activation_checkpointing=True).largest_batch > one.largest_batch
    eight = fit(config, 49, 24 * GB, "bf16", "cuda", gpus=8)
    assert (eight.largest_batch, eight.accum_iter * 8, eight.effective_batch) == (
        one.largest_batch,
        one.accum_iter,
        4096,
    )


def test_fit_at_the_ends() -> None:
    none = fit(variant_config("vit_huge"), 64, 8 * GB, "bf16", "cuda")
    assert (none.largest_batch, none.batch_size, none.effective_batch) == (0, 0, 0)
    assert none.peak_bytes > 8 * GB
    assert fit(variant_config("vit_tiny"), 49, 1000 * GB, "bf16", "cuda").largest_batch == 4096


def test_fit_says_what_ends_it() -> None:
    config = variant_config("vit_tiny")
    assert fit(config, 49, 1000 * GB, "bf16", "cuda").limited_by == "recipe"
    assert fit(config, 49, 1000 * GB, "bf16", "cuda", gpus=8).limited_by == "recipe"
    assert fit(config, 49, 2 * GB, "bf16", "cuda").limited_by == "memory"
    assert fit(variant_config("vit_huge"), 64, 8 * GB, "bf16", "cuda").limited_by == "memory"  # not even one


def test_the_process_is_part_of_a_cpus_estimate_and_of_no_gpus() -> None:
    config = variant_config("vit_small")
    step = training_memory(config, 49, 8, "fp32", "cpu").peak
    process = process_bytes(config, step, "fp32", "cpu")
    assert process == PROCESS_BYTES + 3 * 4 * count_parameters(config).total + round(KEPT_HEAP["fp32"] * step)
    assert process_bytes(config, step, "fp32", "cuda") == process_bytes(config, step, "fp32", "mps") == 0
    one = fit(config, 49, 16 * GB, "fp32", "cpu")
    within = training_memory(config, 49, one.largest_batch, "fp32", "cpu", accumulate=True).peak
    assert (within + process_bytes(config, within, "fp32", "cpu")) * (1 + FIT_MARGINS["cpu"]) <= 16 * GB


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "batch"), [("vit_tiny", 8), ("vit_tiny", 64), ("vit_small", 8)])
def test_the_estimate_is_what_pretrain_really_takes(variant: str, batch: int, tmp_path: Path) -> None:
    """The whole process at its peak: Python, torch, data, model, a save and a preview; within a tenth."""
    code = (
        "import sys\nfrom maecli.app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    data = tmp_path / "photos"
    data.mkdir()
    for number in range(2 * batch):
        (data / f"{number}.jpg").hardlink_to(ROOT / "sample_images" / "cat.jpg")
    options = f"--variant {variant} --batch-size {batch} --precision fp32 --device cpu --epochs 2 --warmup-epochs 0"
    options += " --save-minutes 0"
    done = finish(start_python("-c", code, "pretrain", data, *options.split(), "--out", tmp_path / "run"), 600)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024
    config = variant_config(variant)
    step = training_memory(config, 49, batch, "fp32", "cpu").peak
    assert step + process_bytes(config, step, "fp32", "cpu") == pytest.approx(peak, rel=0.1)


def measured_and_estimated(
    name: str, batch: int, precision: str, *, activation_checkpointing: bool = False
) -> tuple[int, int]:
    config, machine = variant_config(name), MeasuredDevice("cpu", precision, "this one", 1, torch.__version__, 1e9)
    peak = measure_training_peak(
        config, machine, mask_ratio=0.75, batch=batch, activation_checkpointing=activation_checkpointing
    )
    assert peak is not None
    return peak, training_memory(
        config, 49, batch, precision, "cpu", activation_checkpointing=activation_checkpointing
    ).peak


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "batch"), [(n, b) for n in ("vit_tiny", "vit_small", "vit_base") for b in (8, 32)])
def test_estimate_against_real_processes(name: str, batch: int, precision: str) -> None:
    peak, estimate = measured_and_estimated(name, batch, precision)
    assert estimate == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_estimate_with_recomputing_against_a_real_process(precision: str) -> None:
    peak, estimate = measured_and_estimated("vit_small", 32, precision, activation_checkpointing=True)
    assert estimate == pytest.approx(peak, rel=0.1)
