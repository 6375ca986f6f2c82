"""Coverage-guided mutated inputs give a model, an image or a ``MaeError``.

python -m pytest -m fuzz tests/fuzz     # MAECLI_FUZZ_SECONDS for each target (60), MAECLI_FUZZ_SEED (0)
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.targets import TARGETS
from tests.processes import finish, start_python


@pytest.mark.fuzz
@pytest.mark.timeout(0)  # as long as it is asked to
@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_it(name: str, tmp_path: Path) -> None:
    seconds, seed = os.environ.get("MAECLI_FUZZ_SECONDS", "60"), os.environ.get("MAECLI_FUZZ_SEED", "0")
    words = [name, "--seconds", seconds, "--seed", seed, "--keep", tmp_path]
    run = finish(start_python("-m", "tests.fuzz.targets", *words), timeout=None)
    sys.stdout.write(run.stdout)
    assert run.returncode == 0, run.stderr[-3000:]


def test_the_fuzzer_finds_what_is_behind_three_checks() -> None:
    """The fuzzer finds a planted mistake; otherwise finding none would mean nothing."""
    fuzzer = Fuzzer(_planted, [b"abcdefgh"], "test_fuzz.py", seed=0)
    with pytest.raises(ZeroDivisionError):
        fuzzer.run(30)
    blind = Fuzzer(_planted, [b"abcdefgh"], "no such file", seed=0)
    blind.run(fuzzer.tried / 100_000)
    assert len(blind.kept) == 1


def _planted(data: bytes) -> None:
    if len(data) > 3 and data[0] == 7:
        if data[1] == 99:
            if data[2] == 200:
                raise ZeroDivisionError
            return
        return
