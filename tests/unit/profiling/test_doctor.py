"""``doctor``: its findings are right, problems are named, and nothing personal is printed."""

from __future__ import annotations

import dataclasses
import getpass
import importlib
import json
import pwd
import socket
from pathlib import Path
from typing import Any

import pytest

from mae.profiling import doctor
from mae.profiling.doctor import Diagnosis, DoctorConfig, Speed, examine
from mae.system.environment import Machine
from tests.cli.at_terminal import run_at

HEALTHY = Diagnosis(
    maecli="1",
    python="3.12",
    machine=Machine("Linux", "CPU", ("avx2",), 8, 8.0, 64 * 2**30),
    packages={"torch": "2.14.1+cu130", "simplejpeg": "1.9"},
    torch_failure=None,
    gpus=(),
    device="cpu",
    precision="bf16",
    precision_reason="because",
    threads=8,
    locale="C",
    encoding="utf-8",
    disk_free_bytes=100 * 2**30,
    shared_memory_free_bytes=16 * 2**30,
    speed=Speed(1e11, 3e11, "vit_tiny", 8, "bf16", 100.0),
    warnings=(),
)


def warnings_of(monkeypatch: pytest.MonkeyPatch, seen: str = "", **changes: Any) -> list[str]:
    monkeypatch.setattr(doctor, "graphics_at_a_glance", lambda: seen)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return doctor._warnings(dataclasses.replace(HEALTHY, **changes))


def test_a_healthy_machine_gets_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings_of(monkeypatch) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packages": {"torch": "2.9.1", "simplejpeg": "1"}}, "torch 2.9.1 is older than 2.11"),
        ({"packages": {"torch": "2.14.1", "simplejpeg": None}}, "simplejpeg is not installed"),
        ({"threads": 2}, "2 threads on 8 usable cores"),
        ({"threads": 16}, "OMP_NUM_THREADS=8"),
        ({"precision": "fp32"}, "no bf16 on this processor"),
        ({"speed": Speed(3e11, 1e11, "vit_tiny", 8, "bf16", 9.0)}, "bf16 was measured slower"),
        ({"shared_memory_free_bytes": 64 * 2**20}, "/dev/shm has 64 MiB free"),
        ({"disk_free_bytes": 2**30}, "1.0 GiB free on the disk"),
        ({"machine": Machine("Linux", "CPU", (), 8, 8.0, 2 * 2**30)}, "2.0 GiB of memory"),
        ({"seen": "an NVIDIA GPU"}, "there seems to be an NVIDIA GPU, but torch does not see it"),
        ({"torch_failure": "torch cannot be loaded: x"}, "torch cannot be loaded: x"),
    ],
)
def test_what_hurts_is_named(changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = warnings_of(monkeypatch, **changes)
    assert words in warning


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller batch and smaller matrix products than for people."""
    import torch

    monkeypatch.setattr(doctor, "SPEED_BATCH", 1)
    monkeypatch.setitem(doctor._MATMUL_SIDES, "cpu", 256)
    found = examine(DoctorConfig(speed=True))
    assert found.torch_failure is None
    assert found.threads == torch.get_num_threads()
    assert found.packages["torch"] == torch.__version__
    assert found.speed is not None
    assert found.speed.matmul_fp32_flops > 1e8
    assert found.speed.images_per_second > 0.1
    assert found.speed.precision == found.precision
    assert examine(DoctorConfig(speed=False)).speed is None


def test_a_torch_that_cannot_be_loaded_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> Any:
        if name == "torchvision":
            raise RuntimeError(f"operator torchvision::nms does not exist in {Path.home()}/venv\nmore")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", broken)
    seen = run_at("doctor")
    assert seen.code == 1
    assert (
        "warning: torchvision cannot be loaded: RuntimeError: operator torchvision::nms does not exist in ~/venv\n"
        in seen.out
    )


def test_a_container_may_have_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(user: int) -> None:
        raise KeyError(user)

    error = OSError("/opt/venv/libc10.so: no such file")
    monkeypatch.setenv("HOME", "/")
    assert doctor._without_home(error) == str(error)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert doctor._without_home(error) == str(error)


def test_a_folder_that_was_deleted_is_examined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert examine(DoctorConfig(speed=False)).python


def test_what_is_pasted_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen = run_at("doctor", "--no-speed")
    assert seen.code == 0
    assert seen.err == ""
    personal = [str(tmp_path), str(Path.home()), socket.gethostname(), f"/{getpass.getuser()}"]
    for words in personal:
        assert len(words) < 3 or words not in seen.out
    for words in ("maecli", "processor", "memory", "torch ", "precision", "/dev/shm", "encoding"):
        assert words in seen.out
    document = json.loads(run_at("doctor", "--no-speed", "--json").out)
    assert document["machine"]["cores"] >= 1
    assert document["speed"] is None
