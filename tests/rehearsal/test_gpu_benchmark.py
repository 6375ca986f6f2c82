"""The GPU benchmark on a CPU: a failing part does not lose the results of the others."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import subprocess
import time
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ROOT, TIMEOUT, finish, start_python
from tests.rehearsal.fake_cuda import Traffic, fake_cuda

ODD = Path(__file__).parent / "odd_parts.py"
SCRIPT = ROOT / "benchmarks" / "gpu.py"
REAL = (
    "environment", "steps_large", "tests", "steps_base", "graphs", "memory", "resume", "ranks", "fp16", "steps_huge",
    "saving", "attention", "kernels", "feeding", "decoding",
)  # fmt: skip
pretended = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch cannot even pretend a GPU")


@pytest.fixture(autouse=True)
def _as_a_script_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def command(
    script: Path, folder: Path, *words: str, timeout: float = TIMEOUT
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    process = start_python(script, "--small", "--device", "cpu", "--out", folder, *words, cwd=folder.parent)
    done = finish(process, timeout)
    path = folder / "gpu.json"
    return done, json.loads(path.read_text()) if path.exists() else {}


def test_no_part_takes_the_others_down(tmp_path: Path) -> None:
    began = time.monotonic()
    done, document = command(ODD, tmp_path / "out")
    parts = document["parts"]
    assert done.returncode == 1, done.stderr
    assert list(parts) == ["hangs", "raises", "lacks", "works"]
    assert [part["status"] for part in parts.values()] == ["timed out", "failed", "lacks a package", "done"]
    assert time.monotonic() - began < 50  # less than the minute for which the hanging part would sleep
    hanging = parts["hangs"]
    assert 4 <= hanging["seconds"] < 40
    assert hanging["result"]["measured"] == 1  # what it had measured before
    assert any("in hangs" in line for line in hanging["stderr"])  # and where it hung
    assert is_gone(hanging["result"]["child"])
    assert parts["raises"]["result"] == {"measured": 2}
    assert parts["raises"]["stderr"][-1] == "RuntimeError: WRONG: it was not so"
    assert "a_package_that_nobody_has" in parts["lacks"]["stderr"][-1]
    assert parts["works"]["result"]["device"] == "cpu"
    assert 0 < parts["works"]["result"]["left"] <= 20
    written = (tmp_path / "out" / "gpu.txt").read_text()
    assert "RuntimeError: WRONG: it was not so" in written
    assert done.stdout == written
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gpu.json", "gpu.txt"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, including one whose exit code was not read."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def test_going_on_runs_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command(ODD, out, "--parts", "works")
    done, _ = command(ODD, out)
    assert done.returncode == 2
    assert "--resume" in done.stderr
    done, document = command(ODD, out, "--resume", "--parts", "works", "raises")
    assert (tmp_path / "runs.log").read_text() == "works\n"  # and not again
    assert {name: part["status"] for name, part in document["parts"].items()} == {"works": "done", "raises": "failed"}
    done, again = command(ODD, out, "--resume", "--parts", "works", "raises")
    assert again["parts"]["works"] == document["parts"]["works"]
    assert (tmp_path / "failures.log").read_text() == "raises\n" * 2  # failed: run once more
    other = json.loads((out / "gpu.json").read_text()) | {"device": "cuda"}
    (out / "gpu.json").write_text(json.dumps(other))
    done, _ = command(ODD, out, "--resume")
    assert done.returncode == 2
    assert "device cuda, not cpu" in done.stderr


def test_parts_without_time_are_told(tmp_path: Path) -> None:
    done, document = command(ODD, tmp_path / "out", "--minutes", "0.0001")
    assert done.returncode == 0
    assert {part["status"] for part in document["parts"].values()} == {"skipped"}
    assert "minutes were over" in document["parts"]["works"]["why"]


def test_a_part_that_is_told_to_stop_is_recorded(tmp_path: Path) -> None:
    process = start_python(
        ODD, "--small", "--device", "cpu", "--out", tmp_path / "out", "--parts", "hangs", cwd=tmp_path
    )
    path, end = tmp_path / "out" / "gpu.json", time.monotonic() + 30
    while not (path.exists() and "child" in path.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.terminate()
    assert finish(process).returncode == 128 + 15
    part = json.loads(path.read_text())["parts"]["hangs"]
    assert part["status"] == "interrupted"
    assert part["result"]["measured"] == 1
    assert is_gone(part["result"]["child"])


def work_in(folder: Path, device: str = "cpu") -> Any:
    work = importlib.import_module("gpu_parts.work")
    return work.Work(device, True, None, folder, folder / "result.json", time.monotonic() + 100)


def test_a_race_goes_on_without_who_cannot_run(tmp_path: Path) -> None:
    racing, work = importlib.import_module("gpu_parts.racing"), work_in(tmp_path)
    racing.steps(work, "vit_base", ("ours-bf16", "nobody-fp32", "arithmetic-fp16", "ours-bf16+recompute"))
    said = json.loads((tmp_path / "result.json").read_text())
    assert said == work.said
    assert said["batch_size"] == 4
    assert list(said["rows"]) == ["ours-bf16", "nobody-fp32", "arithmetic-fp16", "ours-bf16+recompute"]
    assert said["rows"].pop("nobody-fp32")["failed"] == "KeyError: 'nobody'"
    for row in said["rows"].values():
        assert 0 < row["images_per_second"]["low"] <= row["images_per_second"]["median"]
        assert row["first_over_it"]["high"] > 0
    assert said["rows"]["ours-bf16"]["first_over_it"] == {"median": 1, "low": 1, "high": 1}
    table = importlib.import_module("gpu_parts.table")
    ended = {"status": "done", "shows": "steps", "seconds": 3.0, "limit_seconds": 9.0, "result": said}
    text = "\n".join(table.lines({"device": "cpu", "small": True, "parts": {"steps_large": ended}}))
    assert "target, at least 2 times arithmetic-fp16: ours-bf16" in text


def test_the_arithmetic_of_the_official_code_has_its_loss() -> None:
    """Its attention is ours with other operations."""
    training, work = importlib.import_module("training"), importlib.import_module("gpu_parts.work")
    models = []
    with unittest.mock.patch.object(
        training, "plain_step", lambda setting, precision, model, loss: models.append(model)
    ):
        training.build("arithmetic-fp32", training.Setting(work.SMALL, 2, "cpu"))
    (other,) = models
    ours = importlib.import_module("mae").MaskedAutoencoder(**vars(work.SMALL))
    ours.load_state_dict(other.state_dict())
    imgs, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 16)
    with torch.no_grad():
        losses = [float(model(imgs, 0.75, noise)[0]) for model in (other, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", ["costs:memory", "costs:saving", "exact:resume", "exact:fp16"])
def test_a_part_measures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that settings of a part are restored
    module, _, function = name.partition(":")
    work = work_in(tmp_path)
    getattr(importlib.import_module(f"gpu_parts.{module}"), function)(work)
    said = work.said
    match function:
        case "memory":
            assert set(said["rows"]["vit_base"]) == {"batch_size", "limited_by", "estimated_bytes", "peak_bytes"}
        case "saving":
            assert said["bytes"] > 100_000
        case "resume":
            assert [row["unlike"] for row in said["rows"].values()] == [0] * 2
            assert not torch.are_deterministic_algorithms_enabled()
        case "fp16":
            assert all(map(math.isfinite, said["losses"]))


def test_a_run_that_is_not_the_same_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    exact, step = importlib.import_module("gpu_parts.exact"), importlib.import_module("mae.training.step")
    restore = step.TrainingStep.restore
    forgetful = lambda self, model, optimizer, scaler: restore(self, model, {}, scaler)  # noqa: E731
    with (
        unittest.mock.patch.object(step.TrainingStep, "restore", forgetful),
        pytest.raises(RuntimeError, match="WRONG"),
    ):
        exact.resume(work_in(tmp_path))


@contextlib.contextmanager
def pretended_gpu(number: int) -> Iterator[list[tuple[str, Any]]]:
    """Answers and records the calls of torch.cuda, for the GPU of this number."""
    asked: list[tuple[str, Any]] = []

    def answer(name: str, value: Any) -> Any:
        def ask(device: Any = None) -> Any:
            asked.append((name, device))
            return value

        return ask

    answers = {
        "set_device": None, "synchronize": None, "mem_get_info": (70 * 10**9, 80 * 10**9), "memory_reserved": 10**9,
        "memory_allocated": 0, "reset_peak_memory_stats": None, "max_memory_allocated": 10**9,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, value in answers.items():
            stack.enter_context(unittest.mock.patch(f"torch.cuda.{name}", answer(name, value)))
        stack.enter_context(unittest.mock.patch("torch.cuda.empty_cache"))
        device = torch.device("cuda", number)
        stack.enter_context(unittest.mock.patch("gpu_parts.device.resolve_device", return_value=device))
        yield asked


def test_every_question_names_the_gpu() -> None:
    device = importlib.import_module("gpu_parts.device")
    with pretended_gpu(1) as asked:
        gpu = device.open_device("cuda")
        gpu.wait()
        gpu.forget_peak()
        gpu.release()
        assert (gpu.memory(), gpu.allocated(), gpu.peak()) == (71 * 10**9, 0, 10**9)
    assert len(asked) == 7
    assert {place for _, place in asked} == {torch.device("cuda", 1)}
    host = device.open_device("cpu")
    asked_alike = {name for name in vars(device.Gpu) if not name.startswith("_")}
    assert asked_alike <= {name for name in vars(device.Host) if not name.startswith("_")}
    assert (host.allocated(), host.peak(), host.clocks()) == (None, None, None)


@pretended
def test_the_race_is_on_the_gpu(tmp_path: Path) -> None:
    """Our steps in the comparison never wait for the GPU."""
    racing, training = importlib.import_module("gpu_parts.racing"), importlib.import_module("training")
    with pretended_gpu(0) as asked, fake_cuda():  # fake tensors do not support a second device
        work = work_in(tmp_path, "cuda")
        config = work.config("vit_base")
        race = racing.Race(work, 4)
        race.enter("ours-bf16", training.Setting(config, 4, work.on.torch))
        assert race.rows["ours-bf16"].get("peak_bytes") == 10**9, race.rows
        with Traffic() as traffic:
            race.run()
        assert traffic.waits == []
        assert traffic.sent == []  # images and noise are there already
        assert traffic.product_types == {torch.bfloat16}
        assert work.on.memory() == 71 * 10**9
    assert {name for name, _ in asked} >= {"synchronize", "mem_get_info", "reset_peak_memory_stats", "memory_allocated"}


@pytest.mark.slow
def test_all_parts_as_processes(tmp_path: Path) -> None:
    done, document = command(SCRIPT, tmp_path / "out", timeout=1200)
    assert done.returncode == 0, done.stderr
    parts = document["parts"]
    assert tuple(parts) == REAL
    unlike = {name: part["stderr"] for name, part in parts.items() if part["status"] != "done"}
    assert not unlike
    rows = parts["steps_large"]["result"]["rows"]
    assert [name for name, row in rows.items() if "failed" in row] == []
    assert parts["environment"]["result"]["matmul_flops"].keys() == {"bf16", "fp16", "fp32", "tf32"}
    assert len(parts["tests"]["result"]["skipped"]) > 10  # all are skipped here
    assert parts["ranks"]["result"]["rows"]["FSDP2"]["losses"]
    assert parts["feeding"]["result"]["training_images_per_second"] > 0
    assert "target, ViT-L at 45%" in done.stdout


def test_the_parts_are_there_and_in_this_order() -> None:
    gpu = importlib.import_module("gpu")
    assert tuple(part.name for part in gpu.PARTS) == REAL
    for part in gpu.PARTS:
        module, _, function = part.runs.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), part.runs
