"""The cost of a step: memory, kernels, and saving."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from gpu_parts.work import MASK_RATIO, SMALL_MEMORY, Work, one_line
from mae.config import MAEConfig
from mae.errors import is_out_of_memory
from mae.profiling.measuring import timed
from mae.profiling.memory import fit, training_memory


def memory(work: Work) -> None:
    """Two accumulated batches and an update at the largest batch that ``profile --fit`` promises."""
    rows = {}
    for variant in work.variants:
        for activation_checkpointing in (False, True):
            config, available = work.config(variant), SMALL_MEMORY if work.small else work.on.memory()
            kept = config.num_kept(MASK_RATIO)
            how = {"activation_checkpointing": activation_checkpointing}
            found = fit(config, kept, available, "bf16", "cuda", **how)
            size = work.batch(found.largest_batch)
            estimate = training_memory(config, kept, size, "bf16", work.device, accumulate=True, **how).peak
            row: dict[str, Any] = {"batch_size": size, "limited_by": found.limited_by, "estimated_bytes": estimate}
            try:
                row["peak_bytes"] = _peak(work, config, size, activation_checkpointing)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                row["failed"] = "out of memory"
            rows[variant + (" with activation checkpointing" if activation_checkpointing else "")] = row
            work.say(available_bytes=available, rows=rows)
            work.on.release()
    bad = [name for name, row in rows.items() if "failed" in row]
    work.require(not bad, f"out of memory at the batch that was to fit: {', '.join(bad)}")


def _peak(work: Work, config: MAEConfig, batch: int, activation_checkpointing: bool) -> int | None:
    """Of two optimiser steps; the second one has the moments there from its start."""
    work.on.forget_peak()
    step = work.step(config, "bf16")
    step.model.set_activation_checkpointing(activation_checkpointing)
    images = torch.zeros(batch, config.in_chans, *config.img_size, dtype=torch.uint8)
    noise = torch.rand(batch, config.num_patches)
    for _ in range(2):
        for last in (False, True):
            step.backward(images, MASK_RATIO, noise, share=0.5, last=last)
        step.update()
    work.on.wait()
    return work.on.peak()


def saving(work: Work) -> None:
    """Blocks of steps with and without a save, in turn, as ``saving.py`` measures them."""
    import saving as benchmark

    config, batch = work.config("vit_base"), work.batch(256)
    step, images = work.step(config, "bf16"), work.images(config, batch)[0].cpu()
    if work.on.is_gpu:
        images = images.pin_memory()
    benchmark.block(step, images, 2)
    began = time.perf_counter()
    benchmark.block(step, images, 1)
    seconds = time.perf_counter() - began
    count = 1 if work.small else max(1, math.ceil(5 / seconds))  # about as long as the write takes
    work.say(variant="vit_base", batch_size=batch, one_step_seconds=seconds)
    rounds = 1 if work.small else 2
    work.say(**benchmark.measure(step, images, steps=count, rounds=rounds, folder=work.folder))


def attention(work: Work) -> None:
    """Forward and backward pass of each kernel on the tokens of encoder and decoder; which one torch takes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    rows: dict[str, dict[str, Any]] = {}
    for variant in work.variants:
        config, batch = work.config(variant), work.batch(256)
        kept, patches = config.num_kept(MASK_RATIO), config.num_patches
        for where, width, heads, tokens in (
            ("encoder", config.embed_dim, config.num_heads, 1 + kept),
            ("decoder", config.decoder_embed_dim, config.decoder_num_heads, 1 + patches),
        ):
            shape = (batch, tokens, heads, width // heads)
            q, k, v = (
                torch.randn(shape, device=work.on.torch, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
                for _ in range(3)
            )
            row: dict[str, Any] = {"shape": list(q.shape), "milliseconds": {}}
            row["taken"] = SDPBackend(torch._fused_sdp_choice(q, k, v)).name
            gradient = torch.randn(shape, device=work.on.torch, dtype=torch.bfloat16).transpose(1, 2)

            def run(qkv: tuple[Tensor, ...] = (q, k, v), gradient: Tensor = gradient) -> None:
                torch.autograd.grad(torch.nn.functional.scaled_dot_product_attention(*qkv), qkv, gradient)

            for backend in (
                SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
            ):  # fmt: skip
                try:
                    with sdpa_kernel(backend):
                        seconds = timed(run, work.on.torch, repeats=3 if work.small else 20)
                    row["milliseconds"][backend.name] = 1000 * statistics.median(seconds)
                except RuntimeError as error:
                    row["milliseconds"][backend.name] = one_line(error)
            rows[f"{variant} {where}"] = row
            work.say(rows=rows)


def kernels(work: Work) -> None:
    """The kernels that take most of the time of a ViT-L step, and how much of it the device computes at all."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    config, batch = work.config("vit_large"), work.batch(256)
    step, inputs = work.step(config, "bf16"), work.images(config, batch)

    def take(count: int) -> float:
        work.on.wait()
        began = time.perf_counter()
        for _ in range(count):
            step.backward(*inputs)
            step.update()
        work.on.wait()
        return time.perf_counter() - began

    take(3)
    plain = take(3) / 3
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if work.on.is_gpu else [])]
    with profile(activities=activities) as seen:
        take(2)
    name = "self_device_time_total" if work.on.is_gpu else "self_cpu_time_total"
    # On a GPU an operator's row repeats what its kernels' rows have.
    wanted = DeviceType.CUDA if work.on.is_gpu else DeviceType.CPU
    rows = [one for one in seen.key_averages() if one.device_type == wanted and not one.is_user_annotation]
    rows.sort(key=lambda one: -getattr(one, name))
    total = sum(getattr(one, name) for one in rows)
    work.say(
        variant="vit_large", batch_size=batch, step_seconds=plain, busy_seconds=total / 2 / 1e6,
        rows=[
            {"kernel": one.key[:160], "share": getattr(one, name) / total, "calls": one.count} for one in rows[:25]
        ],
    )  # fmt: skip
