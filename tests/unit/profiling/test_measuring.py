"""The process that measures: what it asks of a GPU, it asks of the one that it computes on."""

from __future__ import annotations

import importlib.util
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch

from mae.profiling import measuring

SECOND = torch.device("cuda", 1)


def test_times_are_those_of_the_named_gpu() -> None:
    with unittest.mock.patch("torch.cuda.synchronize") as wait:
        measuring.timed(lambda: None, SECOND, repeats=1)
    assert {call.args for call in wait.call_args_list} == {(SECOND,)}


def test_the_peak_is_that_of_the_named_gpu() -> None:
    """It is asked after the runs alone: torch refuses to reset a peak before the process has used the GPU."""
    calls = unittest.mock.Mock()
    with (
        unittest.mock.patch.object(measuring, "resolve_device", return_value=SECOND),
        unittest.mock.patch.object(measuring, "_run_thrice", calls.run),
        unittest.mock.patch("torch.cuda.max_memory_allocated", calls.peak),
    ):
        calls.peak.return_value = 7
        assert measuring.peak_bytes({"device": "cuda"}, run := lambda subject: None) == 7
    assert calls.mock_calls == [unittest.mock.call.run({"device": "cuda"}, run), unittest.mock.call.peak(SECOND)]


def test_the_name_is_that_of_the_named_gpu() -> None:
    with (
        unittest.mock.patch.object(measuring, "resolve_device", return_value=SECOND),
        unittest.mock.patch.object(measuring, "fastest_matmul", return_value=1.0),
        unittest.mock.patch("torch.cuda.get_device_name", return_value="the second") as name,
    ):
        answer = measuring.measure_machine({"device": "cuda", "precision": "fp32"})
    assert answer["name"] == "the second"
    assert name.call_args.args == (SECOND,)


def test_a_system_without_the_module_resource_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has none: doctor measures there too, and the peak is unknown."""
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(Path, "read_text", unittest.mock.Mock(side_effect=FileNotFoundError))
    monkeypatch.setattr(Path, "write_text", unittest.mock.Mock(side_effect=FileNotFoundError))
    spec = importlib.util.spec_from_file_location("measuring_there", str(measuring.__file__))
    assert spec is not None
    assert spec.loader is not None
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    monkeypatch.setattr(there, "_run_thrice", lambda request, run: None)
    assert there.peak_bytes({"device": "cpu", "model": {}}, lambda subject: None) is None
