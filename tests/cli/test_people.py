"""All commands with all kinds of output: narrow, light and dumb terminals, no Unicode, pipes, closed pipes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae.reporting.run_log import RunLog, read_run
from tests.cli.at_terminal import Seen, run_at
from tests.cli.small import SIZES
from tests.processes import finish, fork, start_python
from tests.processes import start as start_program
from tests.unit.reporting.runs import write_run

TINY = [*SIZES, "--image-size", "32", "--device", "cpu", "--workers", "0", "--warmup-epochs", "0"]
COLOURS = re.compile(r"\x1b\[[\d;]*m")
COMMANDS = (
    "pretrain",
    "watch",
    "report",
    "profile",
    "modules",
    "reconstruct",
    "compare",
    "export",
    "replay",
    "doctor",
)
DIVERGING = ["--lr", "1e30", "--precision", "fp32", "--epochs", "9", "--nan-limit", "1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and a run trained on them."""
    world = tmp_path_factory.mktemp("world")
    (world / "images").mkdir()
    stream = np.random.default_rng(0)
    for number in range(9):
        pixels = stream.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(world / "images" / f"{number}.png")
    seen = run_at("pretrain", world / "images", *TINY, "--epochs", "1", "--out", world / "run")
    assert seen.code == 0, seen.err
    lost = run_at("pretrain", world / "images", *TINY, *DIVERGING, "--out", world / "lost")
    assert lost.code == 5, lost.err
    return world


@pytest.fixture
def command(world: Path, tmp_path: Path) -> Callable[..., Seen]:
    """Run a command on these images and this run."""
    checkpoint, images = world / "run" / "checkpoint-last.pth", world / "images"
    lines: dict[str, list[Any]] = {
        "pretrain": ["pretrain", images, *TINY, "--epochs", "1", "--out", tmp_path / "run"],
        "watch": ["watch", world / "run", "--once"],
        "report": ["report", world / "run", "--out", tmp_path / "report.html"],
        "profile": ["profile", "--gpu", "h100", "--fit", "24GB"],
        "modules": ["profile", "--variant", "vit_base", "--depth", "3"],
        "reconstruct": ["reconstruct", images, "--checkpoint", checkpoint, "--out", tmp_path / "grid.png"],
        "compare": ["compare", "--official", checkpoint, "--reference", "paper"],
        "export": ["export", checkpoint, "--to", "encoder", "--out", tmp_path / "encoder.pth"],
        "replay": ["replay", world / "lost" / "replay.pth", "--device", "cpu"],
        "doctor": ["doctor", "--no-speed"],
    }

    def run(name: str, *more: str, **how: Any) -> Seen:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        seen = run_at(*lines[name], *more, **how)
        assert "Traceback" not in seen.both, seen.both
        return seen

    return run


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_without_unicode_everything_is_ascii(name: str, terminal: bool, command: Callable[..., Seen]) -> None:
    seen = command(name, encoding="ascii", terminal=terminal, NO_COLOR="1")
    assert seen.code == 0, seen.err
    assert "\\u" not in seen.both
    assert "\\x" not in seen.both


@pytest.mark.parametrize("name", COMMANDS)
def test_in_40_columns_nothing_is_cut(name: str, command: Callable[..., Seen]) -> None:
    seen = command(name, terminal=True, columns=40, TERM="dumb")
    assert seen.code == 0, seen.err
    assert "…" not in seen.both
    if name == "profile":
        assert max(map(len, seen.out.splitlines())) <= 40
        for figure in ("329.54", "124.23", "vit_huge"):  # vit_large's, and the last variant
            assert figure in seen.out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_pipe_gets_plain_lines(name: str, command: Callable[..., Seen]) -> None:
    seen = command(name)
    assert seen.code == 0, seen.err
    assert not set("\x1b\r\x08") & set(seen.both)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dumb_terminal_gets_plain_lines(name: str, command: Callable[..., Seen]) -> None:
    seen = command(name, terminal=True, TERM="dumb")
    assert seen.code == 0, seen.err
    assert not set("\x1b\r\x08") & set(seen.both)
    assert name != "pretrain" or "step 1/1  loss " in seen.err


def colours_of(text: str) -> set[int]:
    """The colour codes of ECMA-48 in a text, without bold and similar codes."""
    codes = {int(code) for part in COLOURS.findall(text) for code in part[2:-1].split(";") if code}
    return {code for code in codes if code >= 30}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_colour_where_none_is_wanted(name: str, command: Callable[..., Seen]) -> None:
    assert colours_of(command(name, terminal=True, NO_COLOR="1").both) == set()


NOT_ON_WHITE = {33, 37, 93, 96, 97, 92, 43, 47}  # yellow, white and bright ones


@pytest.mark.parametrize("name", [*COMMANDS, "help", "pretrain help", "mistake", "usage"])
def test_a_light_terminal_shows_every_colour(name: str, command: Callable[..., Seen]) -> None:
    others = {
        "help": ["--help"],
        "pretrain help": ["pretrain", "--help"],
        "mistake": ["profile", "--variant", "vit_bse"],
        "usage": ["profile", "--no-such"],
    }
    seen = run_at(*others[name], terminal=True) if name in others else command(name, terminal=True)
    assert not colours_of(seen.both) & NOT_ON_WHITE


def test_colour_is_there_for_a_terminal(command: Callable[..., Seen]) -> None:
    assert colours_of(command("profile", terminal=True).out)
    assert colours_of(run_at("--help", terminal=True).out)


def test_warnings_stand_out(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    seen = run_at("report", tmp_path / "run", "--out", tmp_path / "r.html", terminal=True)
    assert "note: " in COLOURS.sub("", seen.err)


QUIET = {
    "watch": r"\d+\.\d+",
    "report": r".*report\.html",
    "reconstruct": r".*grid\.png",
    "compare": "equal",
    "export": r".*encoder\.pth",
    "replay": "it is non-finite in fp32 too: .*",
    "doctor": r"\d+",
    "pretrain": r".*checkpoint-last\.pth",
    "modules": r"\d+",
}


@pytest.mark.parametrize(("name", "value"), QUIET.items())
def test_quiet_is_one_value_and_no_talk(name: str, value: str, command: Callable[..., Seen]) -> None:
    seen = command(name, "--quiet", terminal=True)
    assert re.fullmatch(value + r"\n", seen.out)
    assert seen.err == ""


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_is_one_document(name: str, encoding: str, command: Callable[..., Seen]) -> None:
    seen = command(name, "--json", encoding=encoding)
    assert isinstance(json.loads(seen.out), dict)
    assert "detail: " not in seen.err
    assert not set("\x1b") & set(seen.both)


@pytest.mark.parametrize("name", COMMANDS)
def test_verbose_tells_settings_time_and_memory(name: str, command: Callable[..., Seen]) -> None:
    seen = command(name, "--verbose")
    assert re.search(r"detail: took \d+\.\d s, at most [\d,]+ MiB of memory\n$", seen.err)
    assert re.search(r"detail: \w+ = ", seen.err)
    assert "detail: " not in seen.out


def test_verbose_shows_where_a_mistake_was_found() -> None:
    seen = run_at("profile", "--variant", "vit_bse", "--verbose")
    assert seen.code == 2
    assert "Traceback" in seen.err
    assert "Traceback" not in run_at("profile", "--variant", "vit_bse").err
    assert "error: " in seen.err.splitlines()[-2] + seen.err.splitlines()[-3]


def break_profile(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def broken(config: object) -> None:
        raise error

    monkeypatch.setattr("mae.profiling.run.profile", broken)


def test_a_bug_is_a_line_and_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_profile(monkeypatch, KeyError("x"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = run_at("profile")
    assert (seen.code, seen.out) == (1, "")
    error, hint = seen.err.splitlines()
    assert error.startswith("error: KeyError: 'x' (test_people.py, line ")
    (file,) = tmp_path.iterdir()
    assert str(file) in hint
    assert "Traceback" in file.read_text()
    assert "in broken" in file.read_text()


def test_a_bug_is_told_at_once_where_no_file_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_profile(monkeypatch, KeyError("x"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    seen = run_at("profile")
    assert seen.code == 1
    assert seen.err.startswith("Traceback")
    assert "please report what is above" in seen.err


def test_a_bug_with_verbose_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_profile(monkeypatch, KeyError("x"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert "Traceback" in run_at("profile", "--verbose").err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "error: out of memory"),
        (RuntimeError("CUDA error: out of memory"), "error: out of memory"),
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ..."),
            "error: the GPU cannot be used: CUDA error: no kernel image is available for execution on the device\n"
            "hint: this build of torch has no code for this GPU: install another one (pytorch.org); or give --device",
        ),
        (PermissionError(13, "Permission denied", "/a/b"), "error: /a/b: Permission denied"),
    ],
)
def test_what_is_no_bug_is_not_called_one(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    break_profile(monkeypatch, error)
    seen = run_at("profile")
    assert seen.code == 1
    assert seen.err.startswith(message)
    assert "bug" not in seen.err


USE_CASES = {
    "pretrain": "mae.training.pretrain.pretrain",
    "watch": "mae.reporting.run_log.read_run",
    "report": "mae.reporting.run.report",
    "profile": "mae.profiling.run.profile",
    "reconstruct": "mae.reconstruction.run.reconstruct",
    "compare": "mae.comparison.run.compare",
    "export": "mae.exporting.run.export",
    "replay": "mae.training.replay.replay",
    "doctor": "mae.profiling.doctor.examine",
}


@pytest.mark.parametrize(("name", "use_case"), USE_CASES.items())
def test_ctrl_c_is_a_line_and_130(
    name: str, use_case: str, command: Callable[..., Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(use_case, interrupted)
    seen = command(name)
    assert (seen.code, seen.out, seen.err) == (130, "", "interrupted\n")


def start(*arguments: str | Path, **streams: Any) -> subprocess.Popen[str]:
    return start_python("-m", "maecli", *arguments, **streams)


def test_watch_sees_what_is_logged_while_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", done=3, epochs=4)

    def read_slowly(folder: Path) -> RunLog:
        log = read_run(folder)
        if not log.finished:
            with (folder / "log.jsonl").open("a") as file:
                file.write('{"epoch": 3, "train_loss": 0.125, "train_lr": 1e-4, "seconds": 1}\n')
        return log

    waits = iter([None])  # more than one would mean that it watches forever
    monkeypatch.setattr("mae.reporting.run_log.read_run", read_slowly)
    monkeypatch.setattr("time.sleep", lambda seconds: next(waits))
    assert json.loads(run_at("watch", run, "--json").out)["loss"] == 0.125


@pytest.mark.parametrize("normalised", [True, False])
def test_watch_marks_a_psnr_that_the_original_helped(normalised: bool, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=3)
    settings = (run / "config.toml").read_text().replace("= true", f"= {str(normalised).lower()}", 1)
    (run / "config.toml").write_text(settings)
    psnr = "12.0 dB" + (" (helped by the original's mean and std)" if normalised else "")
    assert psnr in run_at("watch", run, "--once").out.splitlines()[-2]
    assert json.loads(run_at("watch", run, "--once", "--json").out)["psnr_uses_original"] is normalised


def test_ctrl_c_ends_the_watching(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=3, epochs=10)
    process = start("watch", run, "--every", "0.1")
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "epochs 3 of 10" in first
    with (run / "log.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_loss": 0.125, "train_lr": 1e-4, "seconds": 1}\n')
    assert "loss 0.1250" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_watch_ends_with_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", done=3, epochs=4)
    process = start("watch", run, "--every", "0.1", "--json")
    assert process.stderr is not None
    process.stderr.readline()
    with (run / "log.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_loss": 0.125, "train_lr": 1e-4, "seconds": 1}\n')
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert json.loads(out) == {
        "run": str(run),
        "finished": True,
        "epochs": 4,
        "wanted_epochs": 4,
        "step": 24,
        "loss": 0.125,
        "psnr": 12.0,
        "psnr_uses_original": True,
        "seconds_left": 0.0,
        **dict.fromkeys(("val_loss", "knn", "linear", "rank_me", "val_accuracy", "test_accuracy")),
    }


@pytest.mark.parametrize(
    "arguments", [["profile"], ["profile", "--json"], ["profile", "--csv"], ["profile", "--quiet"]]
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*arguments, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_a_reader_that_leaves_the_help_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start("pretrain", "--help", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_a_run_goes_on_when_whoever_followed_it_left(world: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = ["pretrain", world / "images", *TINY, "--epochs", "2", "--out", tmp_path / "run", "--json"]
    process = fork("-m", "maecli", *words, stderr=writing)
    os.close(writing)
    done = finish(process)
    assert done.returncode == 0
    assert json.loads(done.stdout)["epochs"] == 2


def test_a_pipe_that_breaks_inside_is_no_reader_that_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    break_profile(monkeypatch, BrokenPipeError(32, "Broken pipe"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = run_at("profile")
    assert seen.code == 1
    assert seen.err.startswith("error: BrokenPipeError: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_is_said(more: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        process = start("profile", *more, stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "error: cannot write the result: No space left on device\n")


def test_closed_streams_are_no_error() -> None:
    command = f"{sys.executable} -m maecli profile --variant vit_tiny >&- 2>&-"
    assert finish(start_program("bash", "-c", command)).returncode == 0


def test_progress_at_a_terminal_ends_with_the_line(command: Callable[..., Seen]) -> None:
    seen = command("pretrain", terminal=True, columns=40)
    assert seen.code == 0
    assert "100%" in seen.err


def test_ctrl_c_before_all_is_loaded_is_silent() -> None:
    code = """
import os, signal, sys
class Impatient:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Impatient())
from maecli.__main__ import main
main()
"""
    done = finish(start_python("-c", code))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_what_the_encoding_lacks_is_escaped_in_json(tmp_path: Path) -> None:
    run = write_run(tmp_path / "läuft")
    seen = run_at("watch", run, "--once", "--json", encoding="ascii")
    assert json.loads(seen.out)["run"] == str(run)
    assert str(run) in run_at("watch", run, "--once", "--json").out


@pytest.mark.parametrize(
    "arguments", [["report", "{run}", "--out", "{out}"], ["watch", "{run}", "--once"], ["--version"]]
)
def test_looking_at_a_run_loads_no_torch(arguments: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    code = (
        "import sys\nfrom maecli.app import app\n"
        "try:\n    app(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    typed = [argument.format(run=run, out=tmp_path / "page.html") for argument in arguments]
    done = finish(start_python("-c", code, *typed))
    assert (done.returncode, done.stderr) == (0, "False\n")
