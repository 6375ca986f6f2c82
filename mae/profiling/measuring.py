"""The measuring process: reads a request as JSON from stdin and prints the answer as JSON.

Started by ``mae.profiling.measured``; the only module of this package that loads torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.config import MAEConfig
from mae.errors import ConfigError, is_out_of_memory
from mae.io.text import first_line
from mae.mae import MaskedAutoencoder
from mae.models import create_model
from mae.system.device import PRECISIONS, autocast, resolve_device, resolve_precision
from mae.system.environment import processor_name
from mae.training.step import TrainingStep

ENOUGH_SECONDS = 60.0  # no more repeats of one thing after that, but never fewer than two
FEWEST_SECONDS = 0.5
MOST_REPEATS = 1000
_MATMUL_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    _offer_to_be_ended_first()
    try:
        answer = _TASKS[request.pop("task")](request)
    except ConfigError as error:
        answer = {"config_error": error.message, "hint": error.hint}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        answer = {"out_of_memory": first_line(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def measure_machine(request: dict[str, Any]) -> dict[str, Any]:
    """Resolve the device and the precision, and find how fast matrix products are."""
    device = resolve_device(request["device"])
    precision = resolve_precision(request["precision"], device)
    return {
        "device": device.type,
        "precision": precision,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_flops": fastest_matmul(device, precision),
    }


def fastest_matmul(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest square matrix product; of many, as other programs slow most of them down."""
    best = 0.0
    for side in _MATMUL_SIDES[device.type]:
        left, right = (torch.randn(side, side, device=device, dtype=PRECISIONS[precision]) for _ in range(2))
        product = partial(torch.matmul, left, right)
        best = max(best, *(2 * side**3 / seconds for seconds in timed(product, device, repeats=100)))
    return best


def inference_time(request: dict[str, Any]) -> dict[str, Any]:
    """Time ``encode`` of one image and of a batch, and the official forward."""
    subject = Subject(request)
    runs = {"latency": subject.encode_one, "encode": subject.encode, "forward": subject.forward}
    return {
        name: {
            "batch": 1 if name == "latency" else subject.batch,
            "seconds": timed(run, subject.device, subject.repeats),
        }
        for name, run in runs.items()
    }


def training_time(request: dict[str, Any]) -> dict[str, Any]:
    """Time training steps, and on a CPU report the peak memory of the process."""
    subject = Subject(request)
    seconds = timed(subject.training_step, subject.device, subject.repeats)
    answer: dict[str, Any] = {"training_step": {"batch": subject.batch, "seconds": seconds}}
    return answer | ({"training_process_bytes": _resident_peak() or None} if subject.device.type == "cpu" else {})


def inference_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of ``encode``."""
    return {"inference_peak_bytes": peak_bytes(request, lambda subject: subject.encode())}


def training_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of training steps, freed tensors given back at once."""

    def run(subject: Subject) -> None:
        _give_freed_memory_back(subject.step.device)
        subject.training_step()

    return {"training_peak_bytes": peak_bytes(request, run)}


class Subject:
    """A model and a batch of noise for images."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.device = resolve_device(request["device"])
        self.precision: str = request["precision"]
        self.mask_ratio: float = request["mask_ratio"]
        self.batch: int = request["batch"]
        self.repeats: int = request["repeats"]
        sizes = request["model"]
        config = MAEConfig(**(sizes | {"img_size": tuple(sizes["img_size"]), "norm_pix_loss": True}))
        self.model: MaskedAutoencoder = create_model(config).to(self.device)
        self.model.set_activation_checkpointing(request.get("activation_checkpointing", False))
        self.shape = (self.batch, config.in_chans, *config.img_size)

    @cached_property
    def imgs(self) -> Tensor:
        """The batch, normalised, on the device."""
        return torch.rand(self.shape, device=self.device)

    def encode_one(self) -> Tensor:
        """Features of one image."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.model.encode(self.imgs[:1])

    def encode(self) -> Tensor:
        """Features of the batch."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            return self.model.encode(self.imgs)

    def forward(self) -> Tensor:
        """Loss, prediction and mask of the batch, as the official model."""
        with torch.inference_mode(), autocast(self.device, self.precision):
            loss: Tensor = self.model(self.imgs, self.mask_ratio)[0]
            return loss

    @cached_property
    def step(self) -> TrainingStep:
        """What ``pretrain`` steps with."""
        return TrainingStep(self.model, self.precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    @cached_property
    def photographs(self) -> Tensor:
        """The batch as a loader gives it, (B, C, H, W) uint8 on the CPU."""
        return torch.randint(0, 256, self.shape, dtype=torch.uint8)

    def training_step(self) -> Tensor:
        """One optimiser step on the batch."""
        noise = torch.rand(self.batch, self.model.config.num_patches)
        loss = self.step.backward(self.photographs, self.mask_ratio, noise)
        self.step.update()
        return loss


def timed(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Seconds of each of at least ``repeats`` runs, after two that warm up; more where they are short."""
    begun = time.perf_counter()
    seconds: list[float] = []
    for number in range(2 + MOST_REPEATS):
        _wait_for(device)
        start = time.perf_counter()
        run()
        _wait_for(device)
        end = time.perf_counter()
        if number >= 2:
            seconds.append(end - start)
        enough = len(seconds) >= repeats and sum(seconds) > FEWEST_SECONDS
        if enough or (len(seconds) >= 2 and end - begun > ENOUGH_SECONDS):
            break
    return seconds


def peak_bytes(request: dict[str, Any], run: Callable[[Subject], object]) -> int | None:
    """Peak memory of building a subject and three runs; None if the device does not report it.

    On a CPU the same is done with a tiny model first, so that what the libraries take does not count.
    """
    device = resolve_device(request["device"])
    if device.type == "mps":
        return None
    if device.type == "cuda":
        _run_thrice(request, run)
        return torch.cuda.max_memory_allocated(device)  # of the whole process, which does nothing else there
    tiny = {"img_size": (32, 32), "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2}
    _run_thrice(request | {"batch": 2, "model": request["model"] | tiny | {"decoder_depth": 2}}, run)
    before = _forget_resident_peak()
    _run_thrice(request, run)
    return (_resident_peak() - before) or None


def _run_thrice(request: dict[str, Any], run: Callable[[Subject], object]) -> None:
    subject = Subject(request)
    for _ in range(3):
        run(subject)


def _forget_resident_peak() -> int:
    """Reset the peak of the resident size where the system can (Linux); the resident size now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS") or _resident_peak()


def _resident_peak() -> int:
    """The most bytes that were resident; 0 on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    in_kilobytes = sys.platform != "darwin"
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if in_kilobytes else 1)


def _give_freed_memory_back(device: torch.device) -> None:
    """Undo that ``TrainingStep`` has glibc keep freed tensors, which the resident size would count as used."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" and sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 65536)  # M_MMAP_MAX: its default


def _status(field: str) -> int:
    """A size in bytes from /proc/self/status; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


def _offer_to_be_ended_first() -> None:
    """Ask Linux to kill this process first when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


_TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "machine": measure_machine,
    "inference_time": inference_time,
    "training_time": training_time,
    "inference_memory": inference_memory,
    "training_memory": training_memory,
}

if __name__ == "__main__":
    main()
