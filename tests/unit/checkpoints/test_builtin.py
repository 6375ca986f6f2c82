"""The built-in weights: found by name and as default, verified, and an error if they are damaged or missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import mae
from mae.checkpoints import load_checkpoint, load_checkpoint_or_default, save_checkpoint
from mae.checkpoints.build import build_model
from mae.checkpoints.builtin import CARD_FILE, CHECKSUM_FILE, RECIPE_FILE, WEIGHTS_FILE, builtin_file, builtin_folder
from mae.errors import CheckpointError
from mae.io.toml import read_toml
from mae.mae import MaskedAutoencoder
from mae.options import build_config
from mae.training.config import PretrainConfig
from tests.unit.checkpoints.small_builtin import TRAINED_ON, write_builtin


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAECLI_BUILTIN", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


@pytest.fixture
def model(folder: Path) -> MaskedAutoencoder:
    return write_builtin(folder)


def test_by_name(model: MaskedAutoencoder, folder: Path) -> None:
    ours = mae.from_pretrained("builtin").state_dict()
    assert ours.keys() == model.state_dict().keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in model.state_dict().items())
    checkpoint = load_checkpoint(Path("builtin"))
    assert checkpoint.path == folder / WEIGHTS_FILE
    assert checkpoint.is_builtin
    assert build_model(checkpoint)[1] == ()  # no note that they are float16


def test_a_file_of_that_name_comes_first(model: MaskedAutoencoder, tmp_path: Path) -> None:
    own = MaskedAutoencoder(16, 8, 3, 16, 1, 2, 16, 1, 2)
    save_checkpoint(tmp_path / "builtin", own)
    checkpoint = load_checkpoint("builtin")
    assert checkpoint.config == own.config
    assert not checkpoint.is_builtin


def test_without_a_name_the_run_comes_first(model: MaskedAutoencoder, tmp_path: Path) -> None:
    default = load_checkpoint_or_default(None)
    assert default.is_builtin
    assert default.notes[0] == (
        "--checkpoint is not given and the folder run holds no run with a saved state: these are the built-in weights "
        f"(a model of 0.0 million parameters, images of 32x32 pixels, trained on {TRAINED_ON})"
    )
    assert "--checkpoint takes others" in default.notes[1]
    (tmp_path / "run").mkdir()
    assert load_checkpoint_or_default(None).is_builtin
    own = MaskedAutoencoder(16, 8, 3, 16, 1, 2, 16, 1, 2)
    save_checkpoint(tmp_path / "run" / "checkpoint-last.pth", own)
    assert load_checkpoint_or_default(None).config == own.config


def test_a_run_that_was_named_must_be_there(model: MaskedAutoencoder) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file: run"):
        load_checkpoint_or_default(Path("run"))


def test_one_changed_byte_is_refused(model: MaskedAutoencoder, folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-5] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"are damaged: the SHA-256 of \S+ must be [0-9a-f]{64}; got "):
        load_checkpoint("builtin")


def test_missing_weights_say_so(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the built-in weights cannot be read: .*No such file") as caught:
        load_checkpoint("builtin")
    assert caught.value.exit_code == 4
    with pytest.raises(CheckpointError, match=r"^no weights: --checkpoint is not given .*; the built-in"):
        load_checkpoint_or_default(None)


def test_without_a_checksum_nothing_is_read(model: MaskedAutoencoder, folder: Path) -> None:
    (folder / CHECKSUM_FILE).write_text("\n")
    with pytest.raises(CheckpointError, match="cannot be checked"):
        load_checkpoint("builtin")


def test_a_misspelt_name_is_understood(model: MaskedAutoencoder) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint("buildin")
    assert caught.value.hint == "did you mean builtin?"


@pytest.mark.skipif(not (builtin_folder() / WEIGHTS_FILE).is_file(), reason="this checkout has no built-in weights")
def test_what_comes_with_the_package() -> None:
    """The file is small, complete and has official names; its card and recipe belong to it."""
    path = builtin_file()
    content = path.read_bytes()
    assert len(content) <= 25_000_000
    card = (path.parent / CARD_FILE).read_text()
    assert hashlib.sha256(content).hexdigest() in card
    checkpoint = load_checkpoint("builtin")
    assert checkpoint.has_decoder
    assert checkpoint.norm_pix_loss is False
    model, notes = build_model(checkpoint)
    assert (checkpoint.state.keys(), notes) == (model.state_dict().keys(), ())
    recipe = build_config(PretrainConfig, read_toml(path.parent / RECIPE_FILE, "--config"))
    assert recipe.model_config() == checkpoint.config
