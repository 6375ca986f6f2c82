"""Measurements of this machine, each in a separate process. Only those processes load torch.

A separate process starts with unused memory, and if the system kills it for lack of memory, this process can report
it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

from mae.config import MAEConfig
from mae.errors import ConfigError, TrainingError


@dataclasses.dataclass(frozen=True)
class MeasuredDevice:
    """The measured device.

    Attributes:
        device, precision: As resolved from ``auto``.
        name: Name of the GPU or the processor.
        threads: Number of threads of torch on a CPU.
        torch: Version of torch.
        matmul_flops: FLOP/s of the fastest square matrix product in that precision: the measured peak.
    """

    device: str
    precision: str
    name: str
    threads: int
    torch: str
    matmul_flops: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """Durations of repeated runs after a warm-up.

    Attributes:
        batch: Images per run.
        repeats: Number of timed runs.
        seconds_median, seconds_min, seconds_max: Duration of a run.
        images_per_second: Throughput at the median duration.
        achieved_flops: FLOP/s at the median duration.
        matmul_share: ``achieved_flops`` over the measured peak of the machine.
    """

    batch: int
    repeats: int
    seconds_median: float
    seconds_min: float
    seconds_max: float
    images_per_second: float
    achieved_flops: float
    matmul_share: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of a model on this machine. A failed measurement is None, and ``failures`` has the reason.

    Attributes:
        latency: ``encode`` of one image.
        encode: ``encode`` of a batch.
        forward: The official forward of a batch.
        training_step: ``pretraining_loss``, its backward pass and AdamW's step.
        inference_peak_bytes, training_peak_bytes: On CUDA the most that its allocator had given out; on a
            CPU the growth of the resident size over a process that has torch loaded and warm.
        training_process_bytes: On a CPU the most that the whole training process had resident, torch and the
            gaps between tensors included; None elsewhere.
        failures: Reasons of failed measurements, such as out of memory.
    """

    latency: Timing | None
    encode: Timing | None
    forward: Timing | None
    training_step: Timing | None
    inference_peak_bytes: int | None
    training_peak_bytes: int | None
    training_process_bytes: int | None
    failures: tuple[str, ...]

    @property
    def unsteady(self) -> bool:
        """Whether some runs took more than 1.5 times the median, so that the timing is unreliable."""
        timings = (self.latency, self.encode, self.forward, self.training_step)
        return any(timing.seconds_max > 1.5 * timing.seconds_median for timing in timings if timing)


def measure_machine(device: str, precision: str) -> MeasuredDevice:
    """Resolve ``auto``, and measure the FLOP/s of matrix products.

    Raises:
        ConfigError: No such device here, or one that does not compute in that precision.
    """
    return MeasuredDevice(**_ask({"task": "machine", "device": device, "precision": precision}))


def measure_model(
    config: MAEConfig,
    machine: MeasuredDevice,
    *,
    mask_ratio: float,
    batch: int,
    repeats: int,
    operations: dict[str, float],
) -> Measured:
    """Measure inference and training of one model.

    Args:
        config: The model's sizes.
        machine: From ``measure_machine``.
        mask_ratio: Fraction of the patches that is masked.
        batch: Images in a batch.
        repeats: Timed runs of each thing.
        operations: FLOPs per image of ``latency``, ``encode``, ``forward`` and ``training_step``.
    """
    shared = _conditions(config, machine, mask_ratio, batch, repeats)
    answers: dict[str, Any] = {}
    failures: list[str] = []
    for task in ("inference_time", "training_time", "inference_memory", "training_memory"):
        try:
            answers |= _ask({"task": task} | shared)
        except TrainingError as error:
            failures.append(f"{task.replace('_', ' ')}: {error.message}")

    def timing(name: str) -> Timing | None:
        return _timing(answers[name], operations[name], machine) if name in answers else None

    return Measured(
        latency=timing("latency"),
        encode=timing("encode"),
        forward=timing("forward"),
        training_step=timing("training_step"),
        inference_peak_bytes=answers.get("inference_peak_bytes"),
        training_peak_bytes=answers.get("training_peak_bytes"),
        training_process_bytes=answers.get("training_process_bytes"),
        failures=tuple(failures),
    )


def measure_training_peak(
    config: MAEConfig, machine: MeasuredDevice, *, mask_ratio: float, batch: int, activation_checkpointing: bool = False
) -> int | None:
    """Peak bytes of training steps in a process of their own, as ``Measured.training_peak_bytes``.

    Raises:
        TrainingError: Out of memory.
    """
    request = _conditions(config, machine, mask_ratio, batch) | {
        "task": "training_memory",
        "activation_checkpointing": activation_checkpointing,
    }
    peak: int | None = _ask(request)["training_peak_bytes"]
    return peak


def _conditions(
    config: MAEConfig, machine: MeasuredDevice, mask_ratio: float, batch: int, repeats: int = 0
) -> dict[str, Any]:
    return {
        "device": machine.device,
        "precision": machine.precision,
        "model": dataclasses.asdict(config),
        "mask_ratio": mask_ratio,
        "batch": batch,
        "repeats": repeats,
    }


def _timing(answer: dict[str, Any], operations: float, machine: MeasuredDevice) -> Timing:
    seconds, batch = sorted(answer["seconds"]), answer["batch"]
    middle = len(seconds) // 2
    median = seconds[middle] if len(seconds) % 2 else (seconds[middle - 1] + seconds[middle]) / 2
    achieved = operations * batch / median
    return Timing(
        batch, len(seconds), median, seconds[0], seconds[-1], batch / median, achieved, achieved / machine.matmul_flops
    )


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to a new process, and wait for its answer."""
    # The same modules as here; without PYTHONSAFEPATH a mae.py in the working folder would come first.
    search = os.pathsep.join(path or os.curdir for path in sys.path)
    environment = os.environ | {"PYTHONPATH": search, "PYTHONSAFEPATH": "1"}
    if request["task"].endswith("_memory"):
        # Without it glibc keeps freed tensors for later and the resident size says little about live ones.
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run(
        [sys.executable, "-m", "mae.profiling.measuring"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        errors="replace",  # a library may print anything
        env=environment,
        check=False,
    )
    if done.returncode < 0:
        raise TrainingError(f"the system ended the process (signal {-done.returncode}), most likely out of memory")
    lines = done.stdout.strip().splitlines()
    answer: dict[str, Any] = json.loads(lines[-1]) if lines and done.returncode == 0 else {}
    if "config_error" in answer:
        raise ConfigError(answer["config_error"], hint=answer["hint"])
    if "out_of_memory" in answer:
        raise TrainingError(f"out of memory ({answer['out_of_memory']})")
    if not answer:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise TrainingError(f"the measuring process failed: {reason[0]}")
    return answer
