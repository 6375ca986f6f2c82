"""The reported properties of the machine against their sources."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import mae
from mae.system import environment
from mae.system.environment import ENVIRONMENT_FILE, cpu_features, machine, packages, usable_cores
from mae.training.run_folder import RunFolder


def test_the_machine() -> None:
    found = machine()
    assert found.processor
    assert found.cores == os.cpu_count()
    assert found.usable_cores is not None
    assert 0 < found.usable_cores <= (os.cpu_count() or 1)
    assert found.memory_bytes is not None
    assert found.memory_bytes > 2**28


CPUINFO = "processor\t: 0\nmodel name\t: A Fine CPU\nflags\t\t: fpu avx2 avx512_bf16 amx_tile amx_int8\n"


def test_features_are_whole_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *a, **k: real(tmp_path / "cpuinfo" if str(path) == "/proc/cpuinfo" else path, *a, **k),
    )
    assert cpu_features() == ("avx2", "avx512_bf16", "amx_tile")
    assert environment.processor_name() == "A Fine CPU"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_a_control_group_limits_the_cores(
    files: dict[str, str], cores: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores() == (cores or 8.0)


def test_a_control_group_limits_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    whole = environment.memory_bytes()
    (tmp_path / "memory.max").write_text("1000000\n")
    assert environment.memory_bytes() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert environment.memory_bytes() == whole


MEMINFO = "MemTotal:       64000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
GB = 1_000_000_000


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 8_192_000_000),
        ({"sys/memory.max": f"{3 * GB}", "sys/memory.current": f"{GB}"}, 2 * GB),
        ({"sys/memory.max": "max", "sys/memory.current": f"{GB}"}, 8_192_000_000),
        (
            {
                "sys/memory.max": f"{3 * GB}",
                "sys/memory.current": f"{3 * GB}",
                "sys/memory.stat": f"anon {GB}\nfile {2 * GB}\ninactive_file {GB}\n",
            },
            GB,
        ),
        ({"sys/memory.max": f"{3 * GB}", "sys/memory.current": f"{4 * GB}"}, 0),
        (
            {
                "proc/self/cgroup": "0::/jobs/seven\n",
                "sys/jobs/memory.max": f"{2 * GB}",
                "sys/jobs/memory.current": f"{GB // 2}",
                "sys/jobs/seven/memory.max": f"{4 * GB}",
                "sys/jobs/seven/memory.current": "0",
            },
            3 * GB // 2,
        ),
        (
            {
                "proc/self/cgroup": "9:cpu:/x\n4:memory:/jobs\n",
                "sys/memory/jobs/memory.limit_in_bytes": f"{2 * GB}",
                "sys/memory/jobs/memory.usage_in_bytes": f"{2 * GB}",
                "sys/memory/jobs/memory.stat": f"cache 9\ntotal_inactive_file {GB}\n",
                "sys/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            GB,
        ),
        (
            {
                "proc/self/cgroup": "0::/../../somebody/else\n",
                "sys/memory.max": f"{GB}",
                "sys/memory.current": "nonsense",
            },
            GB,
        ),
    ],
    ids=["machine", "v2", "v2 without a limit", "v2 caches files", "v2 over its limit", "v2 above", "v1", "nonsense"],
)
def test_memory_that_may_still_be_taken(
    files: dict[str, str], available: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in ({"proc/meminfo": MEMINFO} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(environment, "CGROUP", tmp_path / "sys")
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    assert environment.available_memory() == available


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    monkeypatch.setattr(environment, "PROC", tmp_path)
    assert environment.available_memory() is None


def test_packages_are_versions_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package-here"))
    import torch

    assert packages() == {"torch": torch.__version__, "no-such-package-here": None}


def test_a_run_is_told_what_it_runs_on(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, resume=False)
    run.write_environment()
    written = json.loads((tmp_path / ENVIRONMENT_FILE).read_text())
    assert written["maecli"] == mae.__version__
    assert written["packages"]["numpy"] == importlib.metadata.version("numpy")
    assert not {"device", "precision"} & set(written)  # those of the run, given or chosen, are in its config.toml
    assert None not in written["packages"].values()
    assert str(Path.home()) not in json.dumps(written) or Path.home() == Path("/")


def test_gpus_as_torch_tells_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = SimpleNamespace(name="A Fine GPU", total_memory=80 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert environment.graphics_cards() == [
        {"name": "A Fine GPU", "memory_bytes": 80 * 2**30, "capability": "9.0"} for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ({"driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA H100\nIRQ: 5\n"}, "NVIDIA H100"),
        ({"driver/nvidia/version": "NVRM version"}, "an NVIDIA GPU"),
    ],
)
def test_gpus_at_a_glance(files: dict[str, str], seen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(environment, "PROC", tmp_path)
    assert environment.graphics_at_a_glance() == seen
