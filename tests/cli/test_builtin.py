"""``builtin`` in every command that reads a checkpoint, also as default; without network, and with a plain error."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maecli.app import app
from tests.unit.checkpoints.small_builtin import TRAINED_ON, write_builtin

SIZES = "--embed-dim 32 --depth 1 --num-heads 2 --decoder-embed-dim 32 --decoder-depth 1 --decoder-num-heads 2"
TRAIN = f"--image-size 32 --patch-size 8 {SIZES} --epochs 1 --warmup-epochs 0 --workers 0 --batch-size 4 --device cpu"
COMMANDS = {
    "reconstruct": "reconstruct images/a/0.png --checkpoint builtin --out grid.png --device cpu",
    "reconstruct by default": "reconstruct images/a/0.png --out grid.png --device cpu",
    "evaluate": "evaluate images --checkpoint builtin --probe knn --cache cache --workers 0 --device cpu",
    "evaluate by default": "evaluate images --probe knn --cache cache --workers 0 --device cpu",
    "embed": "embed images --checkpoint builtin --out features.npz --workers 0 --device cpu",
    "embed by default": "embed images --out features.npz --workers 0 --device cpu",
    "export": "export builtin --to official",
    "compare": "compare --official builtin --reference paper",
    "compare by the reference's older name": "compare --official builtin --reference builtin",
    "compare with a second file": "compare --official builtin --checkpoint builtin --reference paper",
    "pretrain": f"pretrain images --init builtin --out trained {TRAIN}",
    "finetune": "finetune images --init builtin --epochs 1 --warmup-epochs 0 --augmenter torchvision --workers 0 "
    "--device cpu",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images; network access is blocked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAECLI_BUILTIN", str(tmp_path / "weights"))

    def refuse(*arguments: Any) -> None:
        raise OSError("the test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    stream = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return tmp_path


def typed(line: str, *more: str) -> Any:
    return CliRunner().invoke(app, [*line.split(), *more])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_them(name: str, place: Path) -> None:
    write_builtin(place / "weights")
    result = typed(COMMANDS[name])
    assert result.exit_code == 0, result.output
    by_default = "default" in name
    assert (TRAINED_ON in " ".join(result.stderr.split())) is by_default
    assert ("--checkpoint takes others" in " ".join(result.stderr.split())) is by_default
    assert TRAINED_ON not in result.stdout
    if name == "export":
        assert (place / "builtin-official.pth").is_file()  # not in the package's folder of the weights


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_is_damaged(name: str, place: Path) -> None:
    write_builtin(place / "weights")
    with (place / "weights" / "builtin.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    result = typed(COMMANDS[name])
    said = " ".join(result.stderr.split())
    assert (result.exit_code, "the built-in weights are damaged" in said) == (4, True), said
    assert "Traceback" not in said


def test_messages_name_them_as_they_are_typed(place: Path) -> None:
    write_builtin(place / "weights")
    refused = typed("predict images --checkpoint builtin")
    assert refused.exit_code == 4
    error, hint = refused.stderr.splitlines()
    assert error.startswith("error: builtin holds no classification head")
    assert hint.endswith(": maecli finetune DATA --init builtin")
    begun = typed("linprobe images --init builtin --batch-size 4 --epochs 1 --warmup-epochs 0 --workers 0 --device cpu")
    assert "weights from builtin" in begun.stderr
    refused = typed("reconstruct images/a/0.png --checkpoint probed --out grid.png")
    assert refused.stderr.splitlines()[1] == "hint: use weights with a decoder, for instance the built-in ones, builtin"


def test_the_result_names_the_file(place: Path) -> None:
    write_builtin(place / "weights")
    result = typed(COMMANDS["reconstruct by default"], "--json")
    document = json.loads(result.stdout)
    assert document["checkpoint"] == str(place / "weights" / "builtin.safetensors")
    assert TRAINED_ON in document["notes"][0]
