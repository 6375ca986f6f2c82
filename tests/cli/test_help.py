"""Help: nothing is cut off, and every example runs."""

from __future__ import annotations

import ast
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from mae.evaluation import linear
from maecli.app import app
from maecli.commands import SUMMARIES
from tests.cli.at_terminal import run_at
from tests.cli.small import SIZES
from tests.processes import finish, start_python
from tests.unit.evaluation.small import class_folders

GROUP: Any = typer.main.get_command(app)
COMMANDS = GROUP.commands
SMALL = [*SIZES, "--image-size", "64", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "2"]
SMALL += ["--workers", "0", "--device", "cpu"]

# Options that make an example fast; if an option is given twice, the last value counts.
MORE = {
    "maecli pretrain sample_images": [*SMALL, "--out", "first"],
    "maecli pretrain photos scans": SMALL,
    "maecli pretrain photos --preset": SMALL,
    "maecli pretrain --resume": ["--epochs", "2"],
    "maecli linprobe flowers": ["--epochs", "2", "--workers", "0", "--device", "cpu"],
    "maecli linprobe --resume": ["--epochs", "3"],
    "maecli finetune flowers": ["--epochs", "2", "--workers", "0", "--device", "cpu", "--augmenter", "torchvision"],
    "maecli finetune --resume": ["--epochs", "3"],
    "maecli predict": ["--workers", "0", "--device", "cpu"],
    "maecli watch": ["--once"],
    "maecli compare": ["--offline"],
}
# Measuring starts seven processes that load torch; tests/cli/test_profile.py tests it.
# The demo runs until it is interrupted; tests/cli/test_demo.py tests it.
PARSED_ONLY = ("--measure", "demo")


def examples(command: str) -> list[str]:
    text = COMMANDS[command].help
    return [line.strip() for line in text.splitlines() if line.strip().startswith("maecli ")]


ALL_EXAMPLES = [example for command in COMMANDS for example in examples(command)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the examples name."""
    world = tmp_path_factory.mktemp("examples")
    stream = np.random.default_rng(0)
    for folder in ("sample_images", "photos", "scans"):
        (world / folder).mkdir()
        for number in range(3):
            pixels = stream.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC)
            image.save(world / folder / f"{number}.png")
    image.save(world / "cat.jpg")
    class_folders(world / "flowers", 5)
    hole = np.zeros((32, 32), np.uint8)
    hole[:16] = 255
    Image.fromarray(hole).save(world / "hole.png")
    assert run_at("pretrain", world / "photos", *SMALL, "--out", world / "run").code == 0
    diverging = ["--lr", "1e30", "--precision", "fp32", "--epochs", "9", "--nan-limit", "1"]
    assert run_at("pretrain", world / "photos", *SMALL, *diverging, "--out", world / "lost").code == 5
    (world / "lost" / "replay.pth").rename(world / "run" / "replay.pth")
    checkpoint = world / "run" / "checkpoint-last.pth"
    for name in ("mae_visualize_vit_base.pth", "before.pth", "after.pth"):
        (world / name).hardlink_to(checkpoint)
    exported = run_at("export", checkpoint, "--to", "hf", "--out", world / "facebook-vit-mae-base")
    assert exported.code == 0, exported.err
    shutil.copytree(world / "run", world / "runs" / "base")
    return world


@pytest.mark.e2e
@pytest.mark.parametrize("example", ALL_EXAMPLES)
def test_every_example_runs(example: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("MAECLI_CACHE", str(world / "cache"))
    monkeypatch.setattr(linear, "MOST_STEPS", 1)  # the accuracy of the probe is tested elsewhere
    program, *arguments = shlex.split(example)
    assert program == "maecli"
    if any(word in arguments for word in PARSED_ONLY):
        COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        return
    if "photos scans" in example:
        shutil.rmtree("runs")
    if arguments[0] == "doctor":
        arguments.append("--no-speed")
    more = next((more for start, more in MORE.items() if example.startswith(start)), [])
    seen = run_at(*arguments, *more)
    assert seen.code == 0, seen.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command: str) -> None:
    assert len(examples(command)) >= 2
    assert all(example.split()[1] == command for example in examples(command))


@pytest.mark.parametrize("columns", [30, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_width_cuts_an_option(command: str, columns: int) -> None:
    seen = run_at(command, "--help", columns=columns)
    assert seen.code == 0
    assert "…" not in seen.out
    context = typer.Context(COMMANDS[command])
    for parameter in COMMANDS[command].get_params(context):
        is_option = parameter.param_type_name == "option" and not parameter.hidden
        names = [*parameter.opts, *parameter.secondary_opts] if is_option else []
        for name in names:
            assert name in seen.out.split() or f"{name}," in seen.out.split()
    examples_in_one_line = [example for example in examples(command) if len(example) + 2 <= columns]
    for example in examples_in_one_line:
        assert f"  {example}\n" in seen.out
    assert all(len(line) <= columns for line in seen.out.splitlines())


def test_the_group_lists_its_commands() -> None:
    out = run_at("--help", columns=40).out
    assert all(name in out.split() for name in COMMANDS)
    assert run_at().out.strip() == run_at("--help").out.strip()


def test_defaults_and_choices_are_told() -> None:
    out = " ".join(run_at("pretrain", "--help", columns=100).out.split())
    assert "--precision auto|fp32|bf16|fp16" in out
    assert "[default: 0.75]" in out
    assert "--hflip / --no-hflip" in out
    assert "--betas FLOAT FLOAT" in out


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["pretrian"], "pretrain"),
        (["profile", "--varaint", "vit_tiny"], "--variant"),
        (["profile", "--variant", "vit_bas"], "vit_base"),
        (["profile", "--gpu", "h1000"], "h100"),
        (["pretrain", "x", "--device", "cudda"], "cuda"),
        (["export", "x", "--to", "timmm"], "timm"),
        (["reprot", "x"], "report"),
    ],
)
def test_near_misses_are_suggested(arguments: list[str], suggestion: str) -> None:
    seen = run_at(*arguments)
    assert seen.code == 2
    assert suggestion in " ".join(seen.err.split()).split("got")[-1]


def test_the_summaries_are_what_the_commands_say_of_themselves() -> None:
    assert {name: " ".join(command.help.split("\n\n")[0].split()) for name, command in COMMANDS.items()} == SUMMARIES


def test_help_loads_neither_a_command_nor_rich() -> None:
    """No module of a command's settings is loaded, and not rich, which takes as long as all other imports."""
    code = (
        "import sys\nfrom maecli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted(name for name in sys.modules if name.startswith(('mae', 'rich.console'))), file=sys.stderr)"
    )
    seen = finish(start_python("-c", code))
    assert seen.returncode == 0, seen.stderr
    loaded = set(ast.literal_eval(seen.stderr))
    command_line = {
        "maecli.app", "maecli.commands", "maecli.views", "maecli.views.help", "maecli.output", "maecli.streams",
    }  # fmt: skip
    assert loaded <= {"mae", "mae.errors", "mae.io", "mae.io.files", "mae.io.text", "maecli", *command_line}
