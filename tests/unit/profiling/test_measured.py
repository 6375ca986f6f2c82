"""Measuring processes: what they answer, and what becomes of those that die."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mae.errors import ConfigError, TrainingError
from mae.models import variant_config
from mae.profiling import measured
from mae.profiling.measured import MeasuredDevice, measure_machine, measure_model
from mae.profiling.memory import training_memory
from tests.processes import run_forked

TINY = variant_config("vit_tiny", img_size=32, depth=1, decoder_depth=2)
MACHINE = MeasuredDevice("cpu", "fp32", "some CPU", 2, "2.0", 1e12)
OPERATIONS = {"latency": 1e6, "encode": 1e6, "forward": 2e6, "training_step": 4e6}


def test_a_model_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that tells the peak of training starts afresh, as its allocator does; the estimate agrees with it."""
    run = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **how: (run if '"training_memory"' in how["input"] else run_forked)(command, **how),
    )
    config = variant_config("vit_tiny", depth=4, decoder_depth=2)
    result = measure_model(config, MACHINE, mask_ratio=0.75, batch=8, repeats=2, operations=OPERATIONS)
    assert result.failures == ()
    for name, batch in (("latency", 1), ("encode", 8), ("forward", 8), ("training_step", 8)):
        timing = getattr(result, name)
        assert timing.batch == batch
        assert timing.repeats >= 2
        assert 0 < timing.seconds_min <= timing.seconds_median <= timing.seconds_max < 10
        assert timing.images_per_second == pytest.approx(batch / timing.seconds_median)
        assert timing.achieved_flops == pytest.approx(OPERATIONS[name] * batch / timing.seconds_median)
        assert timing.matmul_share == pytest.approx(timing.achieved_flops / 1e12)
    assert 0 < result.inference_peak_bytes < result.training_peak_bytes  # type: ignore[operator]
    estimate = training_memory(config, 49, 8, "fp32", "cpu", activation_checkpointing=False).peak
    assert estimate == pytest.approx(result.training_peak_bytes, rel=0.1)


def test_a_users_own_mae_is_not_taken_for_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mae.py").write_text("raise OSError('a file of the user')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="toaster"):
        measure_machine("toaster", "fp32")


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", run_forked)
    ask = measured._ask
    monkeypatch.setattr(measured, "_ask", lambda request: ask(request) if request["task"] == "training_time" else {})
    result = measure_model(TINY, MACHINE, mask_ratio=0.75, batch=10**12, repeats=2, operations=OPERATIONS)
    assert result.training_step is None
    (failure,) = result.failures
    assert failure.startswith("training time: out of memory (")


@pytest.mark.parametrize(
    ("status", "stderr", "message"),
    [
        (-9, "", r"the system ended the process \(signal 9\), most likely out of memory"),
        (1, "Traceback\nValueError: something else\n", "the measuring process failed: ValueError: something else"),
        (3, "", "the measuring process failed: exit status 3"),
    ],
)
def test_processes_that_die(monkeypatch: pytest.MonkeyPatch, status: int, stderr: str, message: str) -> None:
    def died(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess("", status, "", stderr)

    monkeypatch.setattr(subprocess, "run", died)
    with pytest.raises(TrainingError, match=message):
        measure_machine("cpu", "fp32")
    result = measure_model(TINY, MACHINE, mask_ratio=0.75, batch=2, repeats=2, operations=OPERATIONS)
    assert len(result.failures) == 4
    assert result.encode is None


def test_a_message_in_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'd\\351fense' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(TrainingError, match="the measuring process failed: d\ufffdfense"):
        measure_machine("cpu", "fp32")


def test_the_median_of_an_even_number(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"batch": 10, "seconds": [4.0, 1.0, 3.0, 1.0]}
    monkeypatch.setattr(measured, "_ask", lambda request: {"encode": answer} if "time" in request["task"] else {})
    result = measure_model(TINY, MACHINE, mask_ratio=0.75, batch=10, repeats=4, operations=OPERATIONS)
    assert result.encode is not None
    assert (result.encode.seconds_min, result.encode.seconds_median, result.encode.seconds_max) == (1.0, 2.0, 4.0)
    assert result.unsteady
    answer["seconds"] = [4.0, 4.0, 5.9, 3.0]
    assert not measure_model(TINY, MACHINE, mask_ratio=0.75, batch=10, repeats=4, operations=OPERATIONS).unsteady
