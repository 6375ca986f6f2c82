"""``benchmarks/gpu.py`` with parts that fail, hang or lack a package; started by its test."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu

from tests.processes import start


def hangs(work: Any) -> None:
    """Hangs, and so does a process that it has started."""
    child = start("sleep", "60")  # in a session of its own
    work.say(measured=1, child=child.pid)
    time.sleep(60)


def raises(work: Any) -> None:
    """Fails after it has measured something and recorded that it ran."""
    with Path("failures.log").open("a") as log:
        log.write("raises\n")
    work.say(measured=2)
    work.require(False, "it was not so")


def lacks(work: Any) -> None:
    """Needs a package that is not installed."""
    import a_package_that_nobody_has  # noqa: F401


def works(work: Any) -> None:
    """Counts its calls, next to its output."""
    log = Path("runs.log")
    log.write_text(log.read_text() + "works\n" if log.exists() else "works\n")
    work.say(device=work.device, small=work.small, left=work.left())


PARTS = (
    gpu.Part("hangs", "odd_parts:hangs", 4, "never ends"),
    gpu.Part("raises", "odd_parts:raises", 20, "fails"),
    gpu.Part("lacks", "odd_parts:lacks", 20, "lacks a package"),
    gpu.Part("works", "odd_parts:works", 20, "works"),
)

if __name__ == "__main__":
    sys.exit(gpu.main(PARTS, __file__))
