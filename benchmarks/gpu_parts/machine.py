"""Properties of the machine, and the tests that need a GPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

import torch

from gpu_parts.work import ROOT, Work
from mae.profiling.measuring import timed
from mae.system.environment import machine, packages


def environment(work: Work) -> None:
    """What the machine is, and the peaks that shares are taken of."""
    versions = packages()
    work.say(
        device=work.on.facts(),
        machine=dataclasses.asdict(machine()),
        packages={name: version for name, version in versions.items() if version},
        lacking=sorted(_lacking([name for name, version in versions.items() if version is None])),
        clocks={"idle": work.on.clocks()},
    )
    sides = (64,) if work.small else (4096, 8192)
    peaks: dict[str, float] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        peaks[name] = _matmul_peak(work, dtype, sides)
        work.say(matmul_flops=peaks)
        if name == "bf16":  # while the device still works: the clock falls at once when it does not
            work.say(clocks=work.said["clocks"] | {"busy": _clocks_when_busy(work, sides[-1])})
    torch.set_float32_matmul_precision("high")
    peaks["tf32"] = _matmul_peak(work, torch.float32, sides)
    work.say(matmul_flops=peaks)


def _lacking(names: list[str]) -> Iterator[str]:
    """Of these, and of the other packages that a part may want, those that are not installed."""
    yield from names
    for name in ("tomli-w", "pytest", "torchcodec"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name


def _matmul_peak(work: Work, dtype: torch.dtype, sides: Sequence[int]) -> float:
    """FLOP/s of the fastest square product of random matrices."""
    best = 0.0
    for side in sides:
        left, right = (torch.randn(side, side, device=work.on.torch, dtype=dtype) for _ in range(2))
        seconds = timed(functools.partial(torch.matmul, left, right), work.on.torch, repeats=3 if work.small else 100)
        best = max(best, 2 * side**3 / min(seconds))
    return best


def _clocks_when_busy(work: Work, side: int) -> dict[str, str] | None:
    left, right = (torch.randn(side, side, device=work.on.torch, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(2 if work.small else 1500):  # queued: some two seconds of work, while the host asks
        torch.matmul(left, right)
    clocks = work.on.clocks()
    work.on.wait()
    return clocks


def tests(work: Work) -> None:
    """The suite's tests that need a GPU, in pytest; those that failed, with their last lines."""
    report = work.folder / "tests.xml"
    # Options of pyproject.toml that need plugins are left out.
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-rs", f"--junit-xml={report}"]
    command += ["-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib", "-p", "no:cacheprovider"]
    try:
        importlib.metadata.version("pytest")
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError("No module named 'pytest'", name="pytest") from None
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
    cases = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ()
    found: dict[str, list[dict[str, Any]]] = {"passed": [], "skipped": [], "failed": []}
    for case in cases:
        bad = [child for child in case if child.tag in ("failure", "error")]
        kind = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        said = {"why": (bad[0].text or "")[-1500:]} if bad else {}
        found[kind].append({"name": case.get("name"), "seconds": float(case.get("time") or 0), **said})
    work.say(exit_code=done.returncode, **found)
    work.require(done.returncode == 0, f"pytest ended with {done.returncode}; {len(found['failed'])} tests failed")
