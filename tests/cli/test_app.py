"""The command line: start without torch, one JSON document, exit codes, and no traceback for a user's mistake."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mae
from maecli.app import app
from tests.cli.at_terminal import run_at
from tests.cli.small import SIZES
from tests.processes import finish, fork, start_python, until
from tests.unit.reporting.runs import write_run

TINY = [*SIZES, "--image-size", "32", "--device", "cpu", "--workers", "0"]


def maecli(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    stream = np.random.default_rng(0)
    for number in range(6):
        pixels = stream.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    code, _, err = maecli("pretrain", images, *TINY, "--epochs", 1, "--warmup-epochs", 0, "--out", folder)
    assert code == 0, err
    return folder


HEAVY = ("torch", "torchvision", "numpy", "PIL", "rich.progress", "tomli_w")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["pretrain", "--help"], 0),
        (["reconstruct", "--help"], 0),
        (["pretrain", "x", "--epochs", "0"], 2),
        (["pretrain", "x", "--variant", "vit_bse"], 2),
        (["pretrain", "x", "--no-such-option"], 2),
        (["reconstruct"], 2),
        (["nonsense"], 2),
    ],
)
def test_help_and_usage_errors_load_no_torch(arguments: list[str], exit_code: int) -> None:
    code = (
        "import sys\nfrom maecli.app import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as stop:\n"
        f"    print('loaded:', [name for name in {HEAVY} if name in sys.modules], stop.code or 0)\n"
    )
    done = finish(start_python("-c", code, *arguments))
    assert done.stdout.splitlines()[-1:] == [f"loaded: [] {exit_code}"], done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_library_loads_no_torch() -> None:
    code = "import sys, mae, mae.config, mae.models, mae.errors, mae.training.config; print('torch' in sys.modules)"
    assert finish(start_python("-c", code)).stdout == "False\n"


def test_version() -> None:
    import torch

    code, out, _ = maecli("--version")
    first, second, device, processor = out.splitlines()
    assert (code, first, second) == (0, f"maecli {mae.__version__}", f"torch {torch.__version__}")
    assert device.startswith("device: ")
    assert processor.startswith("processor: ")
    assert ("avx2" in processor.split()) == (torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"))


def test_pretrain_and_reconstruct_print_one_document(images: Path, tmp_path: Path) -> None:
    run, grid = tmp_path / "run", tmp_path / "grid.png"
    code, out, err = maecli("pretrain", images, *TINY, "--epochs", 1, "--json", "--out", run)
    assert code == 0
    document = json.loads(out)
    assert document["epochs"] == 1
    assert document["checkpoint"] == str(run / "checkpoint-last.pth")
    assert "predicting zero gives a loss of" in err
    code, out, _ = maecli(
        "reconstruct", images / "0.png", "--checkpoint", run / "checkpoint-last.pth", "--out", grid, "--json"
    )
    assert code == 0
    (image,) = json.loads(out)["images"]
    assert image["psnr_db"] > 0
    assert image["loss"] > 0
    assert grid.stat().st_size > 1000
    code, out, err = maecli(
        "reconstruct", images, "--limit", 2, "--checkpoint", run, "--mask-ratio", 0, "--out", grid, "--json"
    )  # a run folder means its newest state
    assert code == 0
    document = json.loads(out)
    assert document["checkpoint"] == str(run / "checkpoint-last.pth")
    assert [(one["loss"], one["psnr_db"]) for one in document["images"]] == [(None, None)] * 2
    assert f"note: {images}: 2 of 6 images; --limit 6 shows all" in err
    assert "note: No patch was masked" in err
    code, out, _ = maecli(
        "reconstruct", images / "0.png", "--checkpoint", run, "--mask-ratio", 0, "--mask-ratio", 0.5, "--out", grid
    )
    assert code == 0
    assert "nan" not in out
    assert [line.split()[-2:] for line in out.splitlines() if " 0% " in line] == [["-", "-"]]


def test_the_share_of_waiting_is_told(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maecli.views.progress.SECONDS_BETWEEN_LINES", 0.0)
    seen = run_at("pretrain", images, *TINY, "--epochs", "2", "--warmup-epochs", "0", "--out", tmp_path / "run",
                  terminal=True, columns=120)  # fmt: skip
    lines = re.findall(r"epoch \d: loss .* img/s  data (\d+)%  \d+ s", seen.err)
    (told,) = re.findall(r"waiting     (\d+)% of the time, for images; (\d+)% in the first epoch", seen.out)
    document = json.loads(maecli("report", tmp_path / "run", "--out", tmp_path / "page.html", "--json")[1])
    assert [*lines] == [f"{100 * document[name]:.0f}" for name in ("first_data_wait", "data_wait")]
    assert told[1] == lines[0]
    assert min(map(int, lines)) <= int(told[0]) <= max(map(int, lines))
    _, out, _ = maecli("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert f", waiting for images {lines[0]}% -> {lines[1]}% of the time" in out.replace("\n", " ")


def test_report_names_both_files_that_it_wrote(tmp_path: Path) -> None:
    run, page, film = write_run(tmp_path / "run", previews=2), tmp_path / "page.html", tmp_path / "film.gif"
    _, out, _ = maecli("report", run, "--out", page, "--animate", film)
    assert [line.partition(":")[0] for line in out.splitlines()[-2:]] == [f"wrote {page}", f"wrote {film}"]


def test_quiet_prints_the_one_value(run: Path, images: Path, tmp_path: Path) -> None:
    checkpoint, grid = run / "checkpoint-last.pth", tmp_path / "grid.png"
    assert maecli("reconstruct", images / "0.png", "--checkpoint", checkpoint, "--out", grid, "--quiet") == (
        0,
        f"{grid}\n",
        "",
    )


def test_people_see_a_table_and_what_was_written(run: Path, images: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.webp"
    code, out, err = maecli("reconstruct", images, "--checkpoint", run / "checkpoint-last.pth", "--out", grid)
    assert code == 0
    assert "0.png" in out
    assert "5.png" in out
    assert f"wrote {grid}" in out
    assert "taken from the original" in err  # the recipe's target is normalised patches


def test_a_section_that_a_typed_argument_would_hide(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[data]\nimage_size = 32\n")
    code, _, err = maecli("pretrain", tmp_path / "none", "--config", tmp_path / "settings.toml")
    assert code == 2
    assert err.splitlines() == [
        f"error: unknown table [data] in {tmp_path / 'settings.toml'}",
        "hint: settings have no tables: write all names at the top level",
    ]


def test_a_config_file_and_the_command_line_that_wins(images: Path, tmp_path: Path) -> None:
    import tomllib

    settings = tmp_path / "settings.toml"
    settings.write_text(
        f'data = ["{images}"]\nvariant = "vit_tiny"\nimage-size = "32"\nepochs = 2\nwarmup_epochs = 0\n'
        f'workers = 0\ndevice = "cpu"\nout = "{tmp_path / "run"}"\n'
    )
    assert maecli("pretrain", "--config", settings, "--epochs", 1)[0] == 0
    written = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (written["epochs"], written["variant"], written["image_size"]) == (1, "vit_tiny", [32, 32])


MISTAKES: list[tuple[list[str], int, str]] = [
    (["pretrain", "{none}"], 3, "no such folder"),
    (["pretrain", "{empty}"], 3, "no image in"),
    (["pretrain"], 2, "missing DATA"),
    (["pretrain", "{images}", "--mask-ratio", "1"], 2, "--mask-ratio must be above 0 and below 1; got 1"),
    (["pretrain", "{images}", "--image-size", "100"], 2, "the nearest image size is 96x96"),
    (["pretrain", "{images}", "--image-size", "big"], 2, "--image-size: wanted pixels as S or HxW"),
    (["pretrain", "{images}", "--variant", "vit_bse"], 2, "did you mean vit_base"),
    (["pretrain", "{images}", "--precision", "bf61"], 2, "did you mean bf16"),
    (["pretrain", "{images}", "--config", "{none}"], 2, "--config {none}: No such file"),
    (["pretrain", "{images}", "--config", "{misspelt}"], 2, "did you mean batch_size"),
    (["pretrain", "{images}", "--resume", "{empty}"], 2, "--resume {empty}/config.toml: No such file"),
    (["pretrain", "{images}", "--init", "{page}"], 4, "an HTML page"),
    (["reconstruct"], 2, "missing IMAGE"),
    (["reconstruct", "{none}", "--checkpoint", "{weights}"], 3, "no such file"),
    (["reconstruct", "{image}", "--checkpoint", "{none}"], 4, "no such checkpoint file"),
    (["reconstruct", "{image}", "--checkpoint", "{page}"], 4, "an HTML page"),
    (["reconstruct", "{page}", "--checkpoint", "{weights}"], 3, "is a web page saved under an image's name"),
    (["reconstruct", "{image}", "--checkpoint", "{weights}", "--out", "grid.gif"], 2, "must end in .png"),
    (["reconstruct", "{image}", "--checkpoint", "{weights}", "--out", "{none}/grid.png"], 2, "there is no folder"),
    (["reconstruct", "{image}", "--checkpoint", "{weights}", "--mask-ratio", "0.99"], 2, "leaves none"),
    (["replay", "{none}"], 4, "hint: give the replay.pth in a run's folder"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "message"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_are_answered_in_a_line(
    arguments: list[str], exit_code: int, message: str, run: Path, images: Path, tmp_path: Path
) -> None:
    places = {
        "none": tmp_path / "none",
        "empty": tmp_path / "empty",
        "images": images,
        "image": images / "0.png",
        "page": tmp_path / "page.pth",
        "misspelt": tmp_path / "misspelt.toml",
        "weights": run / "checkpoint-last.pth",
    }
    places["empty"].mkdir()
    places["page"].write_text("<!DOCTYPE html><title>Not found</title>")
    places["misspelt"].write_text("batchsize = 3\n")
    code, out, err = maecli(*(argument.format(**places) for argument in arguments), "--json")
    assert code == exit_code, err
    assert out == ""
    assert message.format(**places) in err
    assert "Traceback" not in err


def test_a_debugger_sees_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from mae.errors import DataError

    monkeypatch.setenv("MAECLI_DEBUG", "1")
    with pytest.raises(DataError):
        maecli("pretrain", "/nonexistent/folder")


@pytest.mark.e2e
def test_ctrl_c_saves_and_resume_finishes(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", images, *TINY, "--epochs", "100000", "--log-every", "1", "--out", run]
    process = fork("-m", "maecli", *words)
    log = run / "log.jsonl"
    until(lambda: log.exists() and len(log.read_text().splitlines()) > 3, process)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130
    assert f"resume with: maecli pretrain --resume {run}" in done.stderr
    assert "Traceback" not in done.stderr
    steps = [entry["step"] for entry in map(json.loads, log.read_text().splitlines()) if "lr" in entry]
    assert steps == list(range(1, len(steps) + 1))
    code, out, err = maecli("pretrain", "--resume", run, "--epochs", len(steps) + 2, "--quiet")
    assert code == 0, err
    assert out == f"{run / 'checkpoint-last.pth'}\n"
