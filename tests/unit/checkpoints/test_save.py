"""A saved model is the same model when it is read, by us or by another library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mae
from mae.errors import CheckpointError

CONFIG = mae.MAEConfig((16, 24), 4, 3, 24, 2, 6, 16, 1, 4, 2.0, norm_pix_loss=True)  # unusual heads


@pytest.fixture
def model() -> mae.MaskedAutoencoder:
    torch.manual_seed(0)
    return mae.create_model(CONFIG)


def same(one: mae.MaskedAutoencoder, other: mae.MaskedAutoencoder) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return (
        one.config == other.config and list(ours) == list(theirs) and all(torch.equal(ours[k], theirs[k]) for k in ours)
    )


@pytest.mark.parametrize("name", ["weights.pth", "weights.pt", "weights.safetensors", "folder", "deep/folder.v2"])
def test_saving_and_reading_are_a_pair(model: mae.MaskedAutoencoder, tmp_path: Path, name: str) -> None:
    path = model.save_pretrained(str(tmp_path / name))
    assert path == tmp_path / name
    for _ in range(2):  # also over the file that the weights are mapped from; the size stays the same
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        again = mae.from_pretrained(path)
        assert same(again, model)
        again.save_pretrained(path)
        assert sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path])) == size
    checkpoint = mae.load_checkpoint(path)
    assert (checkpoint.dialect, checkpoint.kind, checkpoint.norm_pix_loss) == ("maecli", "full", True)
    assert not checkpoint.assumed


def test_a_folder_says_its_sizes_in_two_places(model: mae.MaskedAutoencoder, tmp_path: Path) -> None:
    """Another tool may write the weights again without their metadata."""
    folder = model.save_pretrained(tmp_path / "folder")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    stated = json.loads((folder / "config.json").read_text())
    assert stated["model_type"] == "maecli"
    assert (stated["num_heads"], stated["img_size"]) == (6, [16, 24])
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {"blocks.0.attn.qkv.weight", "decoder_blocks.0.norm1.bias", "mask_token"} <= set(file.keys())
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    assert same(mae.from_pretrained(folder), model)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_are_flushed_by_a_descriptor_that_may_write(
    model: mae.MaskedAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Windows refuses to flush a file that is open for reading."""
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.write(descriptor, b"")))
    model.save_pretrained(tmp_path / name)
    assert flushed == [0]


def test_files_have_the_mode_of_any_new_file(model: mae.MaskedAutoencoder, tmp_path: Path) -> None:
    """Other users can read them, unless the umask says otherwise."""
    (tmp_path / "other").touch()
    for name in ("weights.pth", "weights.safetensors"):
        assert model.save_pretrained(tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


def test_where_nothing_can_be_written(model: mae.MaskedAutoencoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/folder", "none/weights.pth", "none/weights.safetensors"):
        with pytest.raises(CheckpointError, match="cannot write"):
            model.save_pretrained(tmp_path / name)
