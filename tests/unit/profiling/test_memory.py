"""The memory estimate against what autograd really keeps, against processes' real peaks, and by property."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae.config import MAEConfig
from mae.models import create_model, variant_config
from mae.models.parameters import count_parameters
from mae.profiling import memory as module
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
    "four channels, other MLP": (SMALL.replace(in_chans=4, mlp_ratio=2.68), 0.75),
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


MOMENTS = {
    # What decides the peak: the tape's only step, the bytes that the end of the forward pass holds beside it.
    "forward": (Step(kept=10**9, gradients=7, passing=0), 10**8),
    "backward": (Step(kept=10**9, gradients=7, passing=10**9), 10**8),
    "update": (Step(kept=10, gradients=7, passing=0), 0),
}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_peak_is_that_of_the_fullest_moment(
    moment: str, accumulate: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, end = MOMENTS[moment]
    tape = Tape(2, "fp32", device)
    tape.steps, tape.cast_weights, tape.scratch = [step], 10**6, 5
    monkeypatch.setattr(module, "own_tape", lambda *_, **__: tape)
    monkeypatch.setattr(module, "own_forward_end", lambda *_: end)
    counts, images = count_parameters(SMALL), 2 * 3 * 64 * 64
    gradients = 4 * counts.trainable
    earlier = gradients if accumulate else 0
    largest = 4 * 192 * 768  # numbers of the largest weight, which AdamW updates by itself on a CPU
    for checkpointing in (False, True):
        wanted = {
            "forward": 4 * images + step.kept + end + earlier + (10**6 if checkpointing else 0),
            "backward": step.kept + step.gradients + step.passing + (step.gradients if accumulate else 0),
            "update": gradients + (3 * largest if device == "cpu" else 0),
        }
        found = training_memory(
            SMALL, 16, 2, "fp32", device, activation_checkpointing=checkpointing, accumulate=accumulate
        )
        assert accumulate or max(wanted, key=wanted.__getitem__) == moment
        assert found.peak == 4 * counts.total + 2 * gradients + images + 5 + max(wanted.values())


def test_the_documents_estimates_are_the_codes() -> None:
    """In the table of the tensors alone, beside what was measured."""
    page = (ROOT / "docs" / "profile.md").read_text()
    pair = r"([\d,]+), ([\d,]+) \| [-+][\d.]+%"
    rows = re.findall(rf"^\| (vit_\w+)(, checkpointing)? \| (\d+) \| {pair} \| {pair} \|$", page, re.MULTILINE)
    assert len(rows) == 12
    for name, checkpointing, batch, *numbers in rows:
        fp32, estimate, bf16, other = (int(number.replace(",", "")) for number in numbers)
        for precision, measured, told in (("fp32", fp32, estimate), ("bf16", bf16, other)):
            found = training_memory(
                variant_config(name), 49, int(batch), precision, "cpu", activation_checkpointing=bool(checkpointing)
            )
            assert round(found.peak / 1e6) == told
            assert told == pytest.approx(measured, rel=0.025)


@pytest.mark.parametrize("img_size", [(16, 32), (128, 256)])
@pytest.mark.parametrize(("precision", "device"), [("bf16", "cuda"), ("fp32", "cpu"), ("bf16", "cpu")])
def test_inference_by_hand(img_size: tuple[int, int], precision: str, device: str) -> None:
    """Attention's weights take the most where they are stored and tokens are many, else the MLP's hidden values do."""
    config = SMALL.replace(img_size=img_size)
    tokens, width, size = 1 + config.num_patches, 192, 2 if precision == "bf16" else 4
    stream = tokens * width
    stored = 2 * 3 * tokens**2 * size if (precision, device) == ("bf16", "cpu") else 0  # three heads
    attention = 5 * stream * 4 + 5 * stream * size + stored
    mlp = 5 * stream * 4 + 2 * 4 * stream * size + (2 if precision == "bf16" else 1) * stream * size
    assert (attention > mlp) == (bool(stored) and tokens > 100)
    cast = 4 * width * width * 2 if precision == "bf16" else 0
    weights, images = 4 * count_parameters(config).total, 7 * 3 * img_size[0] * img_size[1] * 4
    assert inference_peak(config, 7, precision, device) == weights + cast + images + 7 * max(attention, mlp)


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
    assert own_tape(SMALL, 16, 4, "fp32", "cpu").kept < own_tape(SMALL, 16, 4, "fp32", "cuda").kept  # norms and GELU


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
    eight = fit(config, 49, 1000 * GB, "bf16", "cuda", gpus=8)
    assert (eight.limited_by, eight.largest_batch, eight.accum_iter) == ("recipe", 512, 1)
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
