"""The process that measures: what it asks of a GPU, it asks of the one that it computes on."""

from __future__ import annotations

import unittest.mock

import torch

from mae.profiling import measuring

SECOND = torch.device("cuda", 1)


def test_times_are_those_of_the_named_gpu() -> None:
    with unittest.mock.patch("torch.cuda.synchronize") as wait:
        measuring.timed(lambda: None, SECOND, repeats=1)
    assert {call.args for call in wait.call_args_list} == {(SECOND,)}


def test_the_peak_is_that_of_the_named_gpu() -> None:
    with (
        unittest.mock.patch.object(measuring, "resolve_device", return_value=SECOND),
        unittest.mock.patch.object(measuring, "_run_thrice"),
        unittest.mock.patch("torch.cuda.reset_peak_memory_stats") as forget,
        unittest.mock.patch("torch.cuda.max_memory_allocated", return_value=7) as peak,
    ):
        assert measuring.peak_bytes({"device": "cuda"}, lambda subject: None) == 7
    assert [mock.call_args.args for mock in (forget, peak)] == [(SECOND,)] * 2


def test_the_name_is_that_of_the_named_gpu() -> None:
    with (
        unittest.mock.patch.object(measuring, "resolve_device", return_value=SECOND),
        unittest.mock.patch.object(measuring, "fastest_matmul", return_value=1.0),
        unittest.mock.patch("torch.cuda.get_device_name", return_value="the second") as name,
    ):
        answer = measuring.measure_machine({"device": "cuda", "precision": "fp32"})
    assert answer["name"] == "the second"
    assert name.call_args.args == (SECOND,)
