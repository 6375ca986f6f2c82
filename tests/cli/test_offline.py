"""``--offline``: no argument of any command causes network access."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from typer.testing import CliRunner

from maecli.app import app
from tests.cli.small import SIZES
from tests.golden import official

ROOT = Path(__file__).parents[2]
IMAGE = str(ROOT / "sample_images/cat.jpg")
URL = "https://host.invalid/train-{0..1}.tar"
SMALL = (*SIZES, "--image-size", "32", "--epochs", "1", "--warmup-epochs", "0", "--workers", "0")
NOT_CACHED = "is not in the cache, and downloads are disabled (--offline)"
NOT_HERE = "is not on this machine, and downloads are disabled (--offline)"
# The command ({file} is a checkpoint, {out} a new name), the exit code, and the expected message.
CASES = [
    (("pretrain", URL), 3, NOT_HERE),
    (("pretrain", IMAGE, "--val", URL), 3, NOT_HERE),
    (("pretrain", IMAGE, "--init", "mae_pretrain_vit_base"), 4, NOT_CACHED),
    (("pretrain", IMAGE, "--init", "facebook/vit-mae-base"), 4, NOT_CACHED),
    (("reconstruct", IMAGE, "--checkpoint", "mae_visualize_vit_base", "--out", "{out}.png"), 4, NOT_CACHED),
    (("reconstruct", URL, "--checkpoint", "{file}", "--out", "{out}.png"), 3, NOT_HERE),
    (("reconstruct", IMAGE, "--mask", URL, "--checkpoint", "{file}", "--out", "{out}.png"), 3, ""),
    (("compare", "--official", "hf:facebook/vit-mae-base"), 4, NOT_CACHED),
    (("compare", "--official", "{file}", "--checkpoint", "mae_visualize_vit_base"), 4, NOT_CACHED),
    (("compare", "--official", "{file}", "--image", URL), 3, ""),
    (("compare", "--official", "{file}", "--num-heads", "2", "--decoder-num-heads", "4"), 0, ""),
    (("embed", URL, "--checkpoint", "{file}", "--out", "{out}.npz"), 3, NOT_HERE),
    (("embed", IMAGE, "--checkpoint", "facebook/vit-mae-base", "--out", "{out}.npz"), 4, NOT_CACHED),
    (("evaluate", URL, "--checkpoint", "{file}", "--cache", "{out}"), 3, NOT_HERE),
    (("evaluate", IMAGE, "--checkpoint", "facebook/vit-mae-base", "--cache", "{out}"), 4, NOT_CACHED),
    (("inspect", URL), 3, NOT_HERE),
    (("finetune", URL, "--init", "{file}", "--out", "{out}"), 3, NOT_HERE),
    (("linprobe", URL, "--init", "{file}", "--out", "{out}"), 3, NOT_HERE),
    (("predict", IMAGE, "--checkpoint", "facebook/vit-mae-base"), 4, NOT_CACHED),
    (("demo", "--checkpoint", "facebook/vit-mae-base"), 4, NOT_CACHED),
    (("export", "mae_visualize_vit_base", "--to", "timm"), 4, NOT_CACHED),
    (("export", "{file}", "--to", "hf", "--out", "{out}"), 0, ""),
]


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Records all attempts to reach another machine; each fails."""
    attempts: list[str] = []

    def refuse(what: str) -> Any:
        def attempt(*arguments: Any, **options: Any) -> Any:
            attempts.append(f"{what} {arguments[1:]}")
            raise OSError(f"the test has no network: {what}")

        return attempt

    monkeypatch.setattr(socket.socket, "connect", refuse("connect"))
    monkeypatch.setattr(socket.socket, "connect_ex", refuse("connect_ex"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse("urlopen"))
    monkeypatch.setattr("mae.io.download.BACK_OFF_SECONDS", 0)
    monkeypatch.setattr("mae.data.sources.remote.FIRST_PAUSE", 0.0)
    monkeypatch.setenv("MAECLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MAECLI_OFFLINE", raising=False)
    return attempts


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "file.pth"
    torch.save(official.checkpoint(official.GOLDEN["golden_tiny"], "training"), path)
    return path


def typed(words: tuple[str, ...], file: Path, tmp_path: Path) -> list[str]:
    words = tuple(word.format(file=file, out=tmp_path / "out") if word[0] == "{" else word for word in words)
    return [*words, *((*SMALL, "--out", str(tmp_path / "run")) if words[0] == "pretrain" else ())]


@pytest.mark.parametrize(
    ("words", "code", "said"), CASES, ids=[" ".join(words).replace(str(ROOT), "") for words, _, _ in CASES]
)
def test_nothing_is_reached(
    words: tuple[str, ...], code: int, said: str, file: Path, reached: list[str], tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, [*typed(words, file, tmp_path), "--offline"])
    assert reached == []
    assert done.exit_code == code, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("checkpoint*"))


@pytest.mark.parametrize(
    "words", [words for words, _, said in CASES if said], ids=lambda words: " ".join(words).replace(str(ROOT), "")
)
def test_without_it_they_would_be(words: tuple[str, ...], file: Path, reached: list[str], tmp_path: Path) -> None:
    """Without this check the test above could not fail."""
    assert CliRunner().invoke(app, typed(words, file, tmp_path)).exit_code in (3, 4)
    assert reached


def test_every_command_that_has_the_option_is_tried() -> None:
    commands: Any = typer.main.get_command(app)
    having = {
        name
        for name, command in commands.commands.items()
        if any("--offline" in parameter.opts for parameter in command.params)
    }
    tried = {words[0] for words, _, _ in CASES}
    assert having == tried, f"add to CASES every way in which {having - tried} may be told to fetch something"
