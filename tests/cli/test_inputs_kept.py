"""No command overwrites a file that it reads, under any name of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from mae.checkpoints import save_checkpoint
from mae.config import MAEConfig
from mae.models import create_model
from mae.system.seeding import seeded
from maecli.app import app
from tests.unit.reporting.runs import write_run

SIZES = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}


def maecli(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and stderr of a command run in this process."""
    result = CliRunner(env={"COLUMNS": "500"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights, the same weights for transformers, an image and a run."""
    with seeded(0):
        save_checkpoint(tmp_path / "weights.pth", create_model(MAEConfig((32, 32), 8, decoder_num_heads=2, **SIZES)))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    write_run(tmp_path / "run", done=2, previews=1)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _as_it_is(path: Path, suffix: str) -> Path:
    return path if path.suffix == suffix else _by_link(path, suffix)


def _by_link(path: Path, suffix: str) -> Path:
    (path.parent / f"link{suffix}").symlink_to(path.name)
    return path.parent / f"link{suffix}"


def _by_hard_link(path: Path, suffix: str) -> Path:
    (path.parent / f"hard{suffix}").hardlink_to(path)
    return path.parent / f"hard{suffix}"


COMMANDS: dict[str, tuple[str, str, Callable[[Path], list[str | Path]]]] = {
    "reconstruct, the image": (
        "photo.png",
        ".png",
        lambda at: ["reconstruct", at / "photo.png", "--checkpoint", at / "weights.pth"],
    ),
    "reconstruct, the mask": (
        "photo.png",
        ".png",
        lambda at: [
            "reconstruct", at / "run/previews/epoch-0002.png", "--checkpoint", at / "weights.pth", "--mask",
            at / "photo.png",
        ],
    ),
    "reconstruct, the checkpoint": (
        "weights.pth",
        ".png",
        lambda at: ["reconstruct", at / "photo.png", "--checkpoint", at / "weights.pth"],
    ),
    "compare, the image": (
        "photo.png",
        ".png",
        lambda at: [
            "compare", "--official", at / "weights.pth", "--checkpoint", at / "weights.pth", "--image",
            at / "photo.png",
        ],
    ),
    "compare, the checkpoint": (
        "weights.pth",
        ".png",
        lambda at: ["compare", "--official", at / "weights.pth", "--checkpoint", at / "weights.pth"],
    ),
    "embed, the checkpoint": (
        "weights.pth",
        ".npz",
        lambda at: ["embed", at / "photo.png", "--checkpoint", at / "weights.pth"],
    ),
    "embed, the image": (
        "photo.png",
        ".npz",
        lambda at: ["embed", at / "photo.png", "--checkpoint", at / "weights.pth"],
    ),
    "export, the checkpoint": ("weights.pth", ".pth", lambda at: ["export", at / "weights.pth", "--to", "encoder"]),
    "report, the log": ("run/log.jsonl", ".html", lambda at: ["report", at / "run"]),
    "report, a preview": ("run/previews/epoch-0002.png", ".html", lambda at: ["report", at / "run"]),
}  # fmt: skip


@pytest.mark.parametrize("name", [_as_it_is, _by_link, _by_hard_link])
@pytest.mark.parametrize("command", COMMANDS)
def test_out_is_refused(command: str, name: Callable[[Path, str], Path], folder: Path) -> None:
    read, suffix, words = COMMANDS[command]
    out = name(folder / read, suffix)
    before = contents(folder)
    code, err = maecli(*words(folder), "--out", out)
    assert code == 2, err
    assert f"error: --out {out} is " in err
    assert "itself; it would be overwritten" in err
    assert "hint: give --out another name" in err
    assert contents(folder) == before


def test_a_transformers_folder_is_not_exported_onto_itself(folder: Path) -> None:
    code, err = maecli("export", folder / "weights.pth", "--to", "hf", "--out", folder / "vit")
    assert code == 0, err
    for checkpoint, to, out in (
        ("vit", "hf", "vit"),
        ("vit/model.safetensors", "hf", "vit"),
        ("vit", "safetensors", "vit/config.json"),
        ("vit", "timm", "vit/model.safetensors"),
    ):
        before = contents(folder)
        code, err = maecli("export", folder / checkpoint, "--to", to, "--out", folder / out)
        assert code == 2, err
        assert "itself; it would be overwritten" in err
        assert contents(folder) == before
    code, err = maecli("export", folder / "vit", "--to", "hf", "--out", folder / "again")
    assert code == 0, err


@pytest.mark.parametrize(
    "state", ["checkpoint-last.pth", "checkpoint-last-1.pth", "checkpoint-3.pth", "classifier.pth"]
)
def test_no_export_is_written_over_a_state_of_its_run(folder: Path, state: str) -> None:
    (folder / "weights.pth").rename(folder / "run/weights.pth")
    (folder / "run" / state).write_bytes(b"weeks of training")
    code, err = maecli("export", folder / "run/weights.pth", "--to", "encoder", "--out", folder / "run" / state)
    assert code == 2, err
    assert f"{state} is a saved state of the same run itself; it would be overwritten" in err
    assert (folder / "run" / state).read_bytes() == b"weeks of training"


def test_a_report_is_written_into_its_run_again_and_again(folder: Path) -> None:
    for _ in range(2):
        code, err = maecli("report", folder / "run", "--out", folder / "run/report.html")
        assert code == 0, err


@pytest.mark.parametrize("more", [[], ["--auto-resume"]])
def test_a_runs_settings_are_not_written_over_those_it_was_given(folder: Path, more: list[str]) -> None:
    (folder / "new").mkdir()
    given = (folder / "run/config.toml").read_text() + "# as agreed\n"
    (folder / "new/config.toml").write_text(given)
    code, err = maecli(
        "pretrain", folder / "photo.png", "--config", folder / "new/config.toml", "--out", folder / "new",
        "--preset", "small", "--epochs", "1", "--dry-run", *more,
    )  # fmt: skip
    assert code == 2, err
    assert "config.toml is the file of --config itself; it would be overwritten" in err
    assert (folder / "new/config.toml").read_text() == given
    assert [path.name for path in (folder / "new").iterdir()] == ["config.toml"]
