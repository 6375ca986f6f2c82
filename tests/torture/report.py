"""Run everything odd through the real commands and write what happened: python -m tests.torture.report FILE.

Each command runs in a process of its own, forked from one that has loaded torch, so that seconds are those of the
work and not of the imports; memory is the whole process's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import mae
import mae.comparison.run
import mae.exporting.run
import mae.profiling.run
import mae.reconstruction.run
import mae.training.pretrain
from mae.io.files import write_atomically
from mae.io.text import shown
from maecli.app import app
from tests.torture.images import all_cases, write_all
from tests.torture.outputs import all_outputs
from tests.torture.settings import all_settings
from tests.torture.trials import TINY, Stage, Trial, Words, set_stage
from tests.unit.checkpoints.hostile import HOSTILE, code_pickles, torch_zip

SECONDS = 120
_LONGEST = 150
_INTRODUCTION = """# What was tried, and what happened

Made by `python -m tests.torture.report docs/robustness.md`; a test holds that it lists every case with
the exit code that it must have, and the suites in `tests/torture` and `tests/unit/checkpoints` hold the outcomes.

Every line is a real command in a process of its own on two processor cores ({version}).
Seconds are those by the clock, with other work beside it, without those that importing torch takes. Memory is the
peak of the whole process; one that has torch and the commands loaded and does nothing takes {idle:.0f} MB. Exit codes:
0 done, 2 an option or a place, 3 images, 4 a checkpoint, 5 training.

**{total} commands: none showed a traceback, none ran longer than {slowest:.1f} s, none took more than
{largest:,.0f} MB, and no checkpoint ran code.**

(The longest is the training on the whole corpus.) Not in the table: a place without permission and a disk that becomes
read-only (simulated in `tests/torture/test_trials.py`, since these were run as root), the largest image of each
format (`pytest -m slow tests/torture/test_memory.py`: under 2 GB each), Pillow's own test images
(`tests/torture/test_pillow_images.py`), and changed bytes guided by coverage (below).
"""
_FUZZING = """## Changed bytes, guided by coverage

`python -m pytest -m fuzz tests/fuzz` changes files of the corpus for a minute each, or for `MAECLI_FUZZ_SECONDS`, and
goes on from those that reach lines of `mae/` that none reached before. Whatever is not an error of ours, takes
over a minute or 2 GB, or prints a warning, is a finding. A test shows that it finds a mistake planted behind three
checks, and that it does not without looking at the lines.

"""
_FOUND = (
    ("archives", "a zip whose directory says that it lies before the file: a traceback", "named with the reason"),
    ("archives", "a zip member without a name: a traceback", "passed over"),
    ("images", "a JPEG with damaged EXIF: Pillow's warning among a run's lines", "read without it"),
    ("checkpoints", "nothing", ""),
    (
        "by property: crops",
        "`--crop-ratio` far from 1 on an image one pixel wide: a crop of no pixels",
        "a crop has one at least",
    ),
    ("by property: names", "`{0..99999999999}`: memory until the end; `{9..0}`: nothing, silently", "refused"),
    (
        "images",
        "a TIFF whose strips cover a hundredth of it: black for the rest, without a word",
        "refused, with how much of it is there",
    ),
    (
        "by this report",
        "a page of 182 images to a .webp, which holds 16,383 rows: a traceback",
        "refused, naming PNG",
    ),
    (
        "by thinking of time",
        "512 MiB of padding, empty markers or empty chunks in an image: minutes",
        "refused after 300,000 pieces, in a second",
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One command and what came of it."""

    name: str
    exit_code: int
    said: str
    seconds: float
    megabytes: float

    def line(self) -> str:
        """As a row of the table."""
        return (
            f"| {cell(self.name)} | {self.exit_code} | {cell(self.said)} | {self.seconds:.1f} | {self.megabytes:.0f} |"
        )


def cell(text: str) -> str:
    """A text that a table's cell shows as it stands."""
    text = re.sub(r"(.)\1{30,}", r"\1\1\1…", shown(text))
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)


def images() -> Iterator[Trial]:
    """Each image by name through ``reconstruct``, and all together through ``pretrain``."""
    for case in all_cases():
        if case.name == "folder.png":  # given to a command by name it is a folder of images, an empty one
            yield Trial(case.name, _reconstruct(case.make, case.name), 3)
        else:
            yield Trial(case.name, _reconstruct(case.make, case.name), 0 if case.refused is None else 3)
    yield Trial("all of them in one folder, pretrain", _pretrain, 0)
    yield Trial("all of them in one folder, reconstruct", _all_images(".png"), 0)
    yield Trial("all of them in one folder, reconstruct to a .webp", _all_images(".webp"), 2)


def checkpoints() -> Iterator[Trial]:
    """Each hostile checkpoint through ``reconstruct``."""
    for name, (make, _) in HOSTILE.items():
        yield Trial(name, _with_checkpoint(lambda stage, make=make: make()), 4)
    for name in code_pickles(Path("canary")):
        pickled = _code(name)
        yield Trial(f"runs code: {name}", _with_checkpoint(pickled), 4, after=_nothing_was_run)


SECTIONS: dict[str, Callable[[], Iterator[Trial]]] = {
    "Images": images,
    "Checkpoints": checkpoints,
    "Settings": all_settings,
    "Places to write to": all_outputs,
}


def _reconstruct(make: Callable[[Path], object], name: str) -> Callable[[Stage], Words]:
    def words(stage: Stage) -> Words:
        if name == "link.png":
            next(case for case in all_cases() if case.name == "with space.png").make(stage.folder / "with space.png")
        make(stage.folder / name)
        out = stage.folder / "out.webp"
        return ["reconstruct", stage.folder / name, "--checkpoint", stage.weights, "--out", out]

    return words


def _pretrain(stage: Stage) -> Words:
    write_all(stage.folder)
    return ["pretrain", stage.folder, *TINY, "--max-unreadable", "1", "--out", stage.folder.with_name("run-of-all")]


def _all_images(suffix: str) -> Callable[[Stage], Words]:
    def words(stage: Stage) -> Words:
        write_all(stage.folder)
        out = stage.folder.with_name(f"all{suffix}")
        return ["reconstruct", stage.folder, "--checkpoint", stage.weights, "--out", out, "--limit", "1000"]

    return words


def _with_checkpoint(content: Callable[[Stage], bytes]) -> Callable[[Stage], Words]:
    def words(stage: Stage) -> Words:
        path = stage.folder / "file.pth"
        path.write_bytes(content(stage))
        return ["reconstruct", stage.image, "--checkpoint", path, "--out", stage.folder / "out.png"]

    return words


def _code(name: str) -> Callable[[Stage], bytes]:
    return lambda stage: torch_zip(code_pickles(stage.folder / "canary")[name])


def _nothing_was_run(stage: Stage) -> None:
    assert not (stage.folder / "canary").exists()


def run(trial: Trial, stage: Stage, idle: int) -> Row:
    """Run a trial in a process forked from this one, which takes ``idle`` kB.

    Raises:
        AssertionError: It ended otherwise than it must.
    """
    words = _prepared(trial, stage)
    talk = Path(f"{stage.folder}.talk")
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(words, talk, trial.largest_file)
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() - started > SECONDS:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            raise AssertionError(f"{trial.name}: takes over {SECONDS} s")
        time.sleep(0.002)
    seconds = time.monotonic() - started
    *spoken, last = talk.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")
    exit_code, peak, at_first = (int(number) for number in last.split())
    text = "\n".join(spoken)
    assert exit_code == trial.exit_code, f"{trial.name}: ended with {exit_code}\n{text}"
    assert "Traceback" not in text, f"{trial.name}\n{text}"
    trial.after(stage)
    # A fork begins without the libraries' pages, and counts them as it meets them: what it took comes on top.
    return Row(trial.name, exit_code, _said(text, stage), seconds, (peak - at_first + idle) / 1000)


def _prepared(trial: Trial, stage: Stage) -> list[str]:
    """Make what a trial needs, in a process of its own: what that leaves in memory would count as the command's."""
    notes = Path(f"{stage.folder}.words")
    process = os.fork()
    if process == 0:
        with contextlib.suppress(BaseException):
            notes.write_bytes(b"\0".join(os.fsencode(word) for word in trial.make(stage)))
        os._exit(0)
    os.waitpid(process, 0)
    return [os.fsdecode(word) for word in notes.read_bytes().split(b"\0")]


def _child(words: list[str], talk: Path, largest_file: int) -> None:
    """Run the command with what it says going to a file, and its exit code and peak memory behind it."""
    at_first = _memory("VmRSS")
    with talk.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if largest_file:  # what it says must still go somewhere
        reader, writer = os.pipe()
        for number in (1, 2):
            os.dup2(writer, number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", errors="surrogateescape", closefd=False) for number in (1, 2)
    )
    exit_code = 1
    try:
        app(words)
        exit_code = 0
    except SystemExit as end:
        exit_code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    peak = _memory("VmHWM")
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with talk.open("ab") as file:
        if largest_file:
            os.set_blocking(reader, False)
            with contextlib.suppress(BlockingIOError):
                file.write(os.read(reader, 60_000))
        file.write(f"\n{exit_code} {peak} {at_first}\n".encode())
    os._exit(0)


def _memory(entry: str) -> int:
    """Of this process, in kB."""
    return int(Path("/proc/self/status").read_text().split(f"{entry}:")[1].split()[0])


def _said(text: str, stage: Stage) -> str:
    """The line that matters: the error, else a note on this image, else what was written."""
    lines = [line for line in text.replace("│", "").splitlines() if line.strip(" ╭╮╰╯─")]
    wanted = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    wanted += [line.strip() for line in lines if re.search("Invalid value|No such option|requires", line)]
    wanted += [line.removeprefix("note: ") for line in lines if "the first of its" in line]
    wanted += [line for line in lines if line.startswith(("wrote", "checkpoint", "skipped"))]
    line = wanted[0] if wanted else lines[-1] if lines else ""
    for folder, name in ((stage.folder, "."), (stage.folder.parent, "..")):
        line = line.replace(f"{shown(folder)}/", f"{name}/").replace(shown(folder), name)
    return " ".join(line.split())


def main(path: Path) -> None:
    """Run all and write the document."""
    os.environ |= {"COLUMNS": "1000", "MAECLI_OFFLINE": "1", "TERM": "dumb", "NO_COLOR": "1"}
    torch.set_num_threads(1)
    rows: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        shared = set_stage(Path(name))
        idle = _memory("VmRSS")
        for section, trials in SECTIONS.items():
            rows[section] = []
            for number, trial in enumerate(trials()):
                folder = Path(name) / f"{section.split()[0].lower()}-{number}"
                folder.mkdir()
                rows[section].append(run(trial, dataclasses.replace(shared, folder=folder), idle))
                sys.stdout.write(f"{section} {number + 1}: {rows[section][-1].line()}\n")
    every = [row for section in rows.values() for row in section]
    text = _INTRODUCTION.format(
        version=f"maecli {mae.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
        idle=idle / 1000,
        total=len(every),
        slowest=max(row.seconds for row in every),
        largest=max(row.megabytes for row in every),
    )
    for section, listed in rows.items():
        text += (
            f"\n## {section}\n\n| what was tried | exit | what was said | seconds | peak MB |\n|---|---|---|---|---|\n"
        )
        text += "".join(f"{row.line()}\n" for row in listed)
    text += f"\n{_FUZZING}\n| where | what was found | since then |\n|---|---|---|\n"
    text += "".join(f"| {' | '.join(found)} |\n" for found in _FOUND)
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
