"""``-`` means standard input or output where this is supported; elsewhere a one-line error says what is wanted."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mae.checkpoints import save_checkpoint
from mae.comparison.config import CompareConfig
from mae.config import MAEConfig
from mae.errors import ConfigError
from mae.evaluation.config import EmbedConfig
from mae.exporting.config import ExportConfig
from mae.models import create_model
from mae.options import flag_name, option_of
from mae.reconstruction.config import ReconstructConfig
from mae.reporting.config import ReportConfig, WatchConfig
from mae.training.config import PretrainConfig, ReplayConfig
from maecli.app import app
from maecli.output import Output
from tests.processes import TIMEOUT, start_python

ROOT = Path(__file__).parents[2]
SIZES = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
COMMANDS: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "reconstruct": ReconstructConfig,
    "compare": CompareConfig,
    "embed": EmbedConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "watch": WatchConfig,
    "replay": ReplayConfig,
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_model(MAEConfig((32, 32), 8, decoder_num_heads=2, **SIZES))
    save_checkpoint(tmp_path / "weights.pth", model, args={"norm_pix_loss": False})
    return tmp_path / "weights.pth"


def image() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((50, 40), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def maecli(*arguments: str | Path, piped: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, stdout and stderr of a command run in this process."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(argument) for argument in arguments], input=piped)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout_bytes, result.stderr


def test_in_and_out_of_a_real_pipe(weights: Path) -> None:
    """Standard output is only the image; all messages are on standard error."""
    words = ["-m", "maecli", "reconstruct", "-", "--checkpoint", weights, "--out", "-"]
    process = start_python(*words, stdin=subprocess.PIPE, text=False)
    out, err = process.communicate(image(), timeout=TIMEOUT)
    assert process.returncode == 0, err
    with Image.open(io.BytesIO(out)) as page:
        page.load()
        assert page.format == "PNG"
        assert page.width > 4 * 192
    assert out.endswith(b"IEND\xaeB`\x82")
    said = err.decode()
    assert "stdin" in said
    assert "wrote the image to standard output" in said


@pytest.mark.parametrize(("name", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_format_is_as_told(name: str, kind: str, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(image())
    words: list[str | Path] = [tmp_path / "photo.jpg", "--checkpoint", weights, "--out", "-", "--format", name]
    code, out, err = maecli("reconstruct", *words, "--quiet")
    assert (code, err) == (0, "")
    with Image.open(io.BytesIO(out)) as page:
        page.load()
        assert page.format == kind


def test_an_image_from_standard_input_is_named(weights: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["-", "--checkpoint", weights, "--out", tmp_path / "grid.png"]
    code, out, _ = maecli("reconstruct", *words, "--separate", tmp_path / "panels", "--json", piped=image())
    assert code == 0
    document = json.loads(out)
    assert [one["path"] for one in document["images"]] == ["stdin"]
    assert (tmp_path / "panels/001-stdin-original.png").is_file()
    code, out, err = maecli("reconstruct", *words, piped=b"no image")
    assert (code, out) == (3, b"")
    assert "error: stdin: is not an image format that Pillow reads" in err
    code, out, err = maecli("reconstruct", *words, piped=b"")
    assert (code, out) == (3, b"")
    assert "error: stdin: is empty" in err


def test_standard_output_takes_one_thing(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = maecli("reconstruct", "-", "--checkpoint", weights, "--out", "-", "--json", piped=image())
    assert (code, out) == (2, b"")
    assert "error: --out - and --json both write to standard output" in err
    with capsys.disabled():
        monkeypatch.setattr(sys, "stdout", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
        with pytest.raises(ConfigError, match="which is a terminal here") as caught:
            Output().check_takes_file()
        monkeypatch.undo()
    assert "> grid.png" in (caught.value.hint or "")


def paths_of(config_class: Any) -> list[tuple[str, str]]:
    """Options and arguments that take a path, with their help."""
    hints = typing.get_type_hints(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        declared = option_of(field)
        if "Path" in str(hints[field.name]) and not declared.stream:
            found.append(("" if declared.positional else flag_name(field.name), declared.help))
    return found


CASES = [(command, flag, text) for command, config in COMMANDS.items() for flag, text in paths_of(config)]


def test_every_path_is_among_them() -> None:
    assert len(CASES) >= 17
    assert {command for command, flag, _ in CASES if flag == "--out"} == {
        "pretrain",
        "embed",
        "compare",
        "export",
        "report",
    }


@pytest.mark.parametrize(("command", "flag", "text"), CASES)
def test_elsewhere_a_line_says_what_is_wanted(command: str, flag: str, text: str) -> None:
    code, out, err = maecli(command, *([flag, "-"] if flag else ["-"]), piped=image())
    assert (code, out) == (2, b"")
    said = " ".join(err.split())
    if command == "pretrain" and flag == "--resume":  # the settings are read from its folder first
        assert "error: --resume - reads no standard input" in said
        return
    assert "- means standard input or output, which cannot be used here" in said
    assert " ".join(text[1:].rstrip(".").split()) in said


def test_settings_are_read_from_a_file() -> None:
    code, _, err = maecli("pretrain", "photos", "--config", "-", piped=b"epochs = 3")
    assert code == 2
    assert "error: --config - reads no standard input" in err
