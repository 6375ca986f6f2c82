"""Whether results are right: after resuming, with DDP and FSDP2, and in fp16."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from training import spread

from gpu_parts.work import Work, one_line
from mae.config import MAEConfig
from mae.system.distributed import Ranks
from mae.training.step import TrainingStep


def resume(work: Work) -> None:
    """Six steps, and three, a file, and three more; with torch's deterministic kernels and without."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it at its first product, and torch asks for it
    config, batch = work.config("vit_base"), work.batch(64)
    rows: dict[str, dict[str, Any]] = {}
    ways = [(deterministic, precision) for deterministic in (True, False) for precision in ("bf16", "fp32")]
    for deterministic, precision in ways[1:3] if work.small else ways:
        torch.use_deterministic_algorithms(deterministic)
        name, began = f"{precision} {'deterministic' if deterministic else 'as it is'}", time.monotonic()
        try:
            unlike, tensors = _resumed(work, config, batch, precision)
            rows[name] = {"unlike": unlike, "tensors": tensors, "seconds": time.monotonic() - began}
        except RuntimeError as error:  # torch has no such kernel for something
            rows[name] = {"failed": one_line(error)}
        work.say(rows=rows)
        work.on.release()
    torch.use_deterministic_algorithms(False)
    bad = [name for name, row in rows.items() if "deterministic" in name and row.get("unlike", 1)]
    work.require(not bad, f"a resumed run differs, or could not be: {', '.join(bad)}")


def _resumed(work: Work, config: MAEConfig, batch: int, precision: str) -> tuple[int, int]:
    """How many tensors of weights and moments differ, of how many."""
    inputs = work.images(config, batch)

    def take(step: TrainingStep, count: int) -> TrainingStep:
        for _ in range(count):
            step.backward(*inputs)
            step.update()
        return step

    whole = take(work.step(config, precision), 6)
    path = work.folder / "state.pth"
    torch.save(take(work.step(config, precision), 3).state(), path)
    parted = work.step(config, precision)
    kept = torch.load(path, map_location="cpu", weights_only=True)
    parted.restore(kept["model"], kept["optimizer"], kept["scaler"])
    take(parted, 3)
    pairs = list(zip(_tensors(whole), _tensors(parted), strict=True))
    return sum(not torch.equal(one, other) for one, other in pairs), len(pairs)


def _tensors(step: TrainingStep) -> list[Tensor]:
    state = step.state()
    moments = [value for entry in state["optimizer"]["state"].values() for value in entry.values()]
    return [*state["model"].values(), *moments]


class OneOfOne(Ranks):
    """One process that takes itself for several, so that all that several do is done."""

    @property
    def alone(self) -> bool:
        """No."""
        return False


@contextmanager
def one_rank(work: Work) -> Iterator[OneOfOne]:
    """A process group of this process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "WORLD_SIZE": "1"}
    ranks = OneOfOne()
    ranks.join(work.on.torch)
    try:
        ranks.begin_training()
        yield ranks
    finally:
        torch.distributed.destroy_process_group()


def ranks(work: Work) -> None:
    """The same steps alone, with averaged gradients, and in shards."""
    config, batch = work.config("vit_base"), work.batch(256)
    inputs = work.images(config, batch)
    with one_rank(work) as group:
        work.say(backends=str(torch.distributed.get_backend_config(torch.distributed.group.WORLD)), batch_size=batch)
        ways: dict[str, dict[str, Any]] = {
            "alone": {},
            "DDP": {"ranks": group},
            "FSDP2": {"ranks": group, "shard": True},
        }
        rows: dict[str, dict[str, Any]] = {}
        taken = {name: work.step(config, "bf16", **how) for name, how in ways.items()}
        for name, step in taken.items():
            losses, norms = [], []
            for _ in range(3):
                losses.append(step.backward(*inputs))
                norms.append(step.update())
            rows[name] = {"losses": [float(one) for one in losses], "norms": [float(one) for one in norms]}
            work.say(rows=rows)
        rates: dict[str, list[float]] = {name: [] for name in taken}
        for _ in range(2 if work.small else 6):
            for name, step in taken.items():
                work.on.wait()
                began = time.perf_counter()
                for _ in range(2):
                    step.backward(*inputs)
                    step.update()
                work.on.wait()
                rates[name].append(2 * batch / (time.perf_counter() - began))
        for name, own in rates.items():
            rows[name]["images_per_second"] = spread(own)
            rows[name]["of_alone"] = spread([its / alone for its, alone in zip(own, rates["alone"], strict=True)])
        work.say(rows=rows)
    for name in ("DDP", "FSDP2"):
        pairs = zip(rows[name]["losses"], rows["alone"]["losses"], strict=True)
        work.require(all(abs(a - b) <= 0.01 * abs(b) for a, b in pairs), f"{name} has other losses than one alone")


def fp16(work: Work) -> None:
    """Steps in fp16: the loss falls, the scale settles; its first loss beside those of the other precisions."""
    config, batch, count = work.config("vit_base"), work.batch(128), 4 if work.small else 60
    inputs = work.images(config, batch)
    firsts = {}
    for precision in ("fp32", "bf16", "fp16"):
        step = work.step(config, precision)
        firsts[precision] = float(step.backward(*inputs))
        del step
    work.say(batch_size=batch, first_losses=firsts)
    step = work.step(config, "fp16")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(count):
        seen.append((step.backward(*inputs), step.update(), step.loss_scale))
    losses, norms, scales = (torch.stack(list(one)).tolist() for one in zip(*seen, strict=True))
    skipped = sum(not math.isfinite(norm) for norm in norms)
    work.say(steps=count, losses=losses, skipped=skipped, scale_first=scales[0], scale_last=scales[-1])
    work.require(all(map(math.isfinite, losses)), "a loss in fp16 is not finite")
    work.require(skipped < count / 2, f"{skipped} of {count} steps were skipped")
    work.require(scales[-1] > 1, f"the loss scale fell to {scales[-1]}")
    work.require(work.small or losses[-1] < losses[0], "the loss does not fall")
