"""Messages to a user who resumes a run."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from mae.mae import MaskedAutoencoder
from tests.cli.test_app import TINY, maecli
from tests.unit.training.small import make_images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("finished")
    images = make_images(folder / "images")
    code, _, err = maecli(
        "pretrain", images, *TINY, "--epochs", 1, "--warmup-epochs", 0, "--batch-size", 4, "--out", folder / "run"
    )
    assert code == 0, err
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return shutil.copytree(finished, tmp_path / "run")


def told(run: Path, command: str) -> dict[str, Any]:
    code, out, err = maecli(command, run, *(["--once"] if command == "watch" else ["--out", run / "x.html"]), "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_another_recipe_is_refused_in_a_table(run: Path) -> None:
    code, out, err = maecli("pretrain", "--resume", run, "--base-lr", 3, "--no-hflip", "--workers", 1)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == f"error: --resume {run} would not be the same run; what differs:"
    assert [line.split() for line in lines[1:4]] == [
        ["option", "before", "now"], ["--base-lr", "0.00015", "3"], ["--hflip", "on", "off"],
    ]  # fmt: skip
    assert lines[4].startswith("hint: put it back, or start a new run")
    assert f"--init {run / 'checkpoint-last.pth'}" in lines[4]
    assert len(lines) == 5


def test_a_finished_run_says_so_and_how_to_make_it_longer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskedAutoencoder, "__init__", None)  # no model is built
    code, out, err = maecli("pretrain", "--resume", run)
    assert code == 0, err
    assert out.startswith("1 epoch, 2 steps; loss ")
    assert "nan" not in out + err
    assert f"{run} is finished" in err
    assert f"maecli pretrain --resume {run} --epochs N, with N above 1" in err
    code, out, err = maecli("pretrain", "--resume", run, "--json")
    document = json.loads(out)
    assert (document["was_finished"], document["epochs"], document["steps"]) == (True, 1, 2)
    assert document["train_loss"] > 0
    assert maecli("pretrain", "--resume", run, "--quiet") == (0, f"{run / 'checkpoint-last.pth'}\n", "")


def test_what_is_to_be_typed_can_be_typed(run: Path) -> None:
    named = run.rename(run.with_name("my first run"))
    code, _, err = maecli("pretrain", "--resume", named)
    assert code == 0, err
    words = shlex.split(err.partition("to make it longer: ")[2])
    assert words[:5] == ["maecli", "pretrain", "--resume", str(named), "--epochs"]
    for typed in (["--resume", named, "--seed", 1], ["--resume", named / "checkpoint-last.pth"], ["--out", named, run]):
        code, _, err = maecli("pretrain", *typed)
        assert code == 2
        words = shlex.split(err.partition("hint: ")[2])
        assert {str(named), str(named / "checkpoint-last.pth")} & set(words), err


def test_what_tells_of_a_run_agrees_on_its_length(run: Path) -> None:
    code, _, err = maecli("pretrain", "--resume", run, "--epochs", 2)
    assert code == 0, err
    (row,) = [line for line in err.splitlines() if line.strip("│ ").startswith("changed")]
    assert "epochs 1 -> 2: the cosine is stretched" in row
    for command in ("watch", "report"):
        document = told(run, command)
        assert (document["finished"], document["epochs"], document["wanted_epochs"]) == (True, 2, 2)
    page = (run / "x.html").read_text()
    assert "after epoch 1: epochs 1 -&gt; 2" in page
    code, _, err = maecli("pretrain", "--resume", run)
    assert "is finished" in err
    assert "--epochs N, with N above 2" in err


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (
            ["--resume", "{run}/checkpoint-last.pth"],
            "is a file; wanted the folder of a run",
            "--resume {run} resumes the run in it",
        ),
        (["--resume", "{run}/previews"], "previews/config.toml: No such file", "--resume takes the folder of a run"),
        (["--resume", "{run}", "--out", "{run}-2"], "continues in its own folder, not in --out {run}-2", "omit --out"),
        (["--resume", "{run}", "--epochs", "0"], "--epochs must be at least 1", ""),
    ],
)
def test_mistakes(run: Path, words: list[str], message: str, hint: str) -> None:
    code, out, err = maecli("pretrain", *(word.format(run=run) for word in words))
    assert (code, out) == (2, "")
    assert message.format(run=run) in err
    assert hint.format(run=run) in err
