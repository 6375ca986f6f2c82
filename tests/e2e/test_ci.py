"""``.ci/run`` runs the README's test command, lint and types; it fails if any part fails."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.processes import ROOT, environment, finish, start

pytestmark = pytest.mark.e2e

# A substitute for all programs of the environment: prints its command, and fails if it is the chosen one.
_PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >> did.txt
[ "$(basename "$0") $*" = "$BROKEN" ] && echo "this is wrong" && exit 1
exit 0
"""
# The substitute for Python makes an environment of such programs; ruff and mypy exist only after pip ran.
_PIP = _PROGRAM.replace("exit 0", "cp .venv/bin/python .venv/bin/ruff && cp .venv/bin/python .venv/bin/mypy")
_PYTHON = """#!/bin/sh
mkdir -p .venv/bin
printf '%s' "$PROGRAM" > .venv/bin/python
printf '%s' "$PIP" > .venv/bin/pip
chmod +x .venv/bin/*
"""
NEWER_PIP = "pip install -q -U pip"
COMPILING = "python -W ignore -m compileall"
PARTS = ["pip install -q -e .[test,dev]", "python -m pytest", "ruff check .", "ruff format --check .", "mypy "]


def run(folder: Path, broken: str) -> tuple[int, str, list[str]]:
    """The exit code, output and commands of a copy of the script."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    (folder / "bin").mkdir()
    (folder / "bin/python3").write_text(_PYTHON)
    (folder / "bin/python3").chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    programs = {"PATH": path, "PROGRAM": _PROGRAM, "PIP": _PIP}
    done = finish(start("bash", ".ci/run", cwd=folder, env=environment(BROKEN=broken, **programs)))
    newer_pip, *did = (folder / "did.txt").read_text().splitlines()
    assert newer_pip == NEWER_PIP
    compiling = [line for line in did if line.startswith(COMPILING)]
    assert len(compiling) == (broken != PARTS[0])  # once all is installed
    return done.returncode, done.stdout + done.stderr, [line for line in did if line not in compiling]


def test_all_parts_run(tmp_path: Path) -> None:
    code, said, did = run(tmp_path, "nothing")
    assert (code, said) == (0, "")
    assert sorted(did) == sorted(PARTS)
    assert did[0] == PARTS[0]


@pytest.mark.parametrize("part", PARTS)
def test_any_part_that_fails_fails_it(tmp_path: Path, part: str) -> None:
    code, said, did = run(tmp_path, part)
    assert code == 1
    assert said == "this is wrong\n"
    assert sorted(did) == sorted(PARTS[:1] if part == PARTS[0] else PARTS)  # the other parts still run


def test_an_old_pip_installs_as_well(tmp_path: Path) -> None:
    code, _, did = run(tmp_path, NEWER_PIP)
    assert code == 0
    assert sorted(did) == sorted(PARTS)


def test_it_gives_the_test_command_of_the_readme() -> None:
    (command,) = re.findall(
        r"^This line .* runs the tests:\n\n.*\n```bash\n(.*pytest)\n```$", (ROOT / "README.md").read_text(), re.M
    )
    assert f"\n{command}" in (ROOT / ".ci/run").read_text()
