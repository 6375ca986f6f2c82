"""Training steps compared with other implementations."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from training import Setting, build, spread

from gpu_parts.work import MASK_RATIO, SMALL_MEMORY, Work, one_line
from mae.config import MAEConfig
from mae.errors import is_out_of_memory
from mae.models import create_model
from mae.profiling.memory import fit, training_memory
from mae.profiling.run import compute_per_image

OURS = "ours-bf16"
PEERS = ("arithmetic-fp16", "arithmetic-bf16", "transformers-bf16")


def large(work: Work) -> None:
    """ViT-L."""
    steps(work, "vit_large", (OURS, *PEERS, f"{OURS}+blocks", f"{OURS}+compiled"))


def base(work: Work) -> None:
    """ViT-B."""
    steps(work, "vit_base", (OURS, *PEERS, f"{OURS}+compiled"))


def huge(work: Work) -> None:
    """ViT-H, which takes too long to compile as a whole."""
    steps(work, "vit_huge", (OURS, "arithmetic-fp16", "transformers-bf16", f"{OURS}+blocks"))


def graphs(work: Work) -> None:
    """ViT-B in batches so small that starting kernels takes long beside running them."""
    steps(work, "vit_base", (OURS, f"{OURS}+graphs", f"{OURS}+compiled"), batch=64)


def steps(work: Work, variant: str, names: Sequence[str], batch: int | None = None) -> None:
    """Full training steps, all contestants in turn on one device; those that compile come last.

    Each keeps its weights and moments; activations come and go in the same memory.
    """
    config = work.config(variant)
    names = [*names, *(("official-fp16", "official-bf16") if work.official else ())]
    names.sort(key=_compiles)
    size = work.batch(batch or batch_that_fits(work, config, names))
    backend = "eager" if work.small else "inductor"
    setting = Setting(config, size, work.on.torch, work.official, backend)
    kept = config.num_kept(MASK_RATIO)
    work.say(
        variant=variant, batch_size=size, backend=backend,
        flops_per_image=compute_per_image(config, kept, size).own_training_step,
        estimated_peak_bytes=training_memory(config, kept, size, "bf16", "cuda").peak,
    )  # fmt: skip
    race = Race(work, size)
    for name in names:
        if _compiles(name) and not any(map(_compiles, race.steps)):
            race.run()  # compiling may take all the time that is left
        race.enter(name, setting)
    race.run()


def _compiles(name: str) -> bool:
    return name.partition("+")[2] in ("blocks", "compiled", "graphs")


def batch_that_fits(work: Work, config: MAEConfig, names: Sequence[str]) -> int:
    """A power of two for which ``profile --fit`` takes half of what all contestants' weights and moments leave.

    The other implementations need up to twice as much for activations as ours, and CUDA graphs keep theirs.
    """
    memory = SMALL_MEMORY if work.small else work.on.memory()
    state = 16 * sum(parameter.numel() for parameter in _on_meta(config).parameters())
    found = fit(config, config.num_kept(MASK_RATIO), (memory - state * len(names)) // 2, "bf16", "cuda")
    return max(1, found.batch_size)


def _on_meta(config: MAEConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(config)


class Race:
    """Contestants that take steps in turn.

    Attributes:
        steps: By name, of those that have taken part so far.
        rows: What is known of each, failures too.
    """

    def __init__(self, work: Work, batch: int) -> None:
        self.work = work
        self.batch = batch
        self.steps: dict[str, Callable[[], None]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def enter(self, name: str, setting: Setting) -> None:
        """Build one and take its first steps; one that cannot is left out, with the reason."""
        device = self.work.on
        device.forget_peak()
        before, began = device.allocated(), time.monotonic()
        try:
            step, versions = build(name, setting)
            step()
            device.wait()
            first = time.monotonic() - began
            step()
            step()  # graphs are recorded in the second step and replayed from the third on
            seconds = self._turn(step, 1)
        except Exception as error:  # of a compiler, a missing package, a full memory: the others still count
            self.rows[name] = {"failed": "out of memory" if is_out_of_memory(error) else one_line(error)}
            print(f"{name}: {one_line(error)}", file=sys.stderr)
        else:
            peak = device.peak()
            self.steps[name] = step
            self.rows[name] = {
                "versions": versions, "first_step_seconds": first, "images_per_second_alone": self.batch / seconds,
                "peak_bytes": None if peak is None or before is None else peak - before, **_compiler(name),
            }  # fmt: skip
        device.release()
        self.work.say(rows=self.rows)

    def run(self) -> None:
        """All of them in turn, in every other round backwards; rates, and how much faster the first one is."""
        if not self.steps:
            return
        rounds = 2 if self.work.small else 6
        rates: dict[str, list[float]] = {name: [] for name in self.steps}
        turns = {name: self._steps_in_a_turn(name) for name in self.steps}
        for number in range(rounds):
            for name in list(self.steps)[:: -1 if number % 2 else 1]:
                rates[name].append(self.batch * turns[name] / self._turn(self.steps[name], turns[name]))
        first = next(iter(rates))
        for name, own in rates.items():
            self.rows[name]["images_per_second"] = spread(own)
            ratios = [ours / its for ours, its in zip(rates[first], own, strict=True)]
            self.rows[name]["first_over_it"] = spread(ratios)
        self.work.say(rows=self.rows, first=first, rounds=rounds, memory_held=self.work.on.allocated())

    def _steps_in_a_turn(self, name: str) -> int:
        wanted = 0.02 if self.work.small else 0.4  # seconds; so that the host is long ahead of the device
        seconds = self.batch / self.rows[name]["images_per_second_alone"]
        return max(1, math.ceil(wanted / seconds))

    def _turn(self, step: Callable[[], None], count: int) -> float:
        self.work.on.wait()
        began = time.perf_counter()
        for _ in range(count):
            step()
        self.work.on.wait()
        return time.perf_counter() - began


def _compiler(name: str) -> dict[str, Any]:
    """What torch.compile says of itself: breaks in the graph, and whether CUDA graphs were given up."""
    if not _compiles(name):
        return {}
    from torch._dynamo.utils import counters

    return {
        "graph_breaks": sum(counters["graph_break"].values()),
        "cudagraph_skips": counters["inductor"].get("cudagraph_skips", 0),
    }
