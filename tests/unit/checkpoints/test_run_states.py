"""A run folder given as a checkpoint: its newest readable state, in any form."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from typer.testing import CliRunner

import mae
from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.checkpoints.run_states import run_states
from mae.checkpoints.sharded import ABOUT
from mae.errors import CheckpointError
from mae.mae import MaskedAutoencoder
from maecli.app import app

ROOT = Path(__file__).parents[3]
TABLES = ("pos_embed", "decoder_pos_embed")


def model_of(value: float) -> MaskedAutoencoder:
    """A model that is identified by a number."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(16, 8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1)
    with torch.no_grad():
        model.cls_token.fill_(value)
    return model


def write_shards(folder: Path, model: MaskedAutoencoder) -> None:
    """A state as the processes of a sharded run write it."""
    folder.mkdir()
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    about = {"config": dataclasses.asdict(model.config), "position": {"epoch": 3}, "run": {}, "args": {}}
    (folder / ABOUT).write_text(json.dumps(about))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("")
    for name, value in {"checkpoint-9": 9.0, "checkpoint-19": 19.0, "checkpoint-last-1": 1.0}.items():
        save_checkpoint(folder / f"{name}.pth", model_of(value))
    return folder


def first_value(checkpoint: mae.MaskedAutoencoder | mae.Checkpoint) -> float:
    state = checkpoint.state_dict() if isinstance(checkpoint, torch.nn.Module) else checkpoint.state
    return float(state["cls_token"][0, 0, 0])


def test_the_states_of_a_run_come_newest_first(run: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-last-10.pth", "checkpoint-last-2.dcp", "checkpoint-last.pth.broken", "checkpoint-x.pth"):
        (run / name).touch()
    assert [path.name for path in run_states(run)] == [
        "checkpoint-last-1.pth", "checkpoint-last-2.dcp", "checkpoint-last-10.pth", "checkpoint-19.pth",
        "checkpoint-9.pth",
    ]  # fmt: skip
    assert run_states(tmp_path / "nothing") == []
    assert run_states(run / "config.toml") == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(("module", "kind"), [("pathlib._local", "PosixPath"), ("pathlib", "WindowsPath")])
def test_shards_written_elsewhere_are_read(
    module: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Python 3.13, and by another system: torch records the folder's path by its class."""
    written = type(kind, (), {"__module__": module, "__reduce__": lambda self: (type(self), ("runs", "state"))})
    there = types.ModuleType(module)
    setattr(there, kind, written)
    write_shards(tmp_path / "state.dcp", model_of(7.0))
    table = tmp_path / "state.dcp" / ".metadata"
    metadata = pickle.loads(table.read_bytes())
    metadata.storage_meta.checkpoint_id = written()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, there)
        table.write_bytes(pickle.dumps(metadata))
    assert first_value(load_checkpoint(tmp_path / "state.dcp")) == 7


def test_a_run_is_read_at_its_newest_state(run: Path) -> None:
    assert first_value(load_checkpoint(run)) == 1
    save_checkpoint(run / "checkpoint-last.pth", model_of(2.0))
    checkpoint = load_checkpoint(str(run))
    assert (first_value(checkpoint), checkpoint.path, checkpoint.notes) == (2, run / "checkpoint-last.pth", ())
    assert first_value(mae.from_pretrained(run)) == 2
    assert first_value(mae.from_pretrained(run / "checkpoint-9.pth")) == 9


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_run_in_shards_is_put_together(run: Path) -> None:
    write_shards(run / "checkpoint-last.dcp", model_of(3.0))
    model = mae.from_pretrained(run)
    assert first_value(model) == 3
    assert all(torch.equal(value, model_of(3.0).state_dict()[name]) for name, value in model.state_dict().items())
    assert load_checkpoint(run).path == run / "checkpoint-last.dcp"
    (run / "checkpoint-last.dcp" / ABOUT).unlink()
    assert first_value(mae.from_pretrained(run)) == 1


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_shards_whose_numbers_are_damaged_are_passed_over(run: Path) -> None:
    write_shards(run / "checkpoint-last.dcp", model_of(3.0))
    (part,) = (run / "checkpoint-last.dcp").glob("*.distcp")
    part.write_bytes(bytes(part.stat().st_size))
    checkpoint = load_checkpoint(run)
    assert first_value(checkpoint) == 1
    assert f"{run}/checkpoint-last.dcp is damaged: " in checkpoint.notes[0]


def test_a_broken_newest_state_is_passed_over_aloud(run: Path) -> None:
    (run / "checkpoint-last.pth").write_bytes((run / "checkpoint-9.pth").read_bytes()[:2000])
    checkpoint = load_checkpoint(run)
    assert first_value(checkpoint) == 1
    (note,) = checkpoint.notes
    assert f"{run}/checkpoint-last.pth is cut short or damaged" in note
    assert note.endswith(f"{run}/checkpoint-last-1.pth is read instead")
    for path in run_states(run):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-last\.pth is empty"):
        load_checkpoint(run)


def test_a_run_that_saved_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with pytest.raises(CheckpointError, match="holds a run that has not saved a state yet"):
        load_checkpoint(tmp_path)


def test_every_command_takes_a_runs_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def maecli(*command: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(word) for word in command])
        return done.exit_code, done.stdout + done.stderr

    images = ROOT / "sample_images"
    code, said = maecli("reconstruct", images / "cat.jpg", "--checkpoint", run, "--out", tmp_path / "out.png")
    assert code == 0, said
    monkeypatch.chdir(tmp_path)  # where it is the default
    code, said = maecli("reconstruct", images / "cat.jpg", "--out", tmp_path / "out2.png")
    assert code == 0, said
    monkeypatch.chdir(images)
    monkeypatch.setenv("MAECLI_BUILTIN", str(tmp_path / "no weights"))
    code, said = maecli("reconstruct", images / "cat.jpg", "--out", tmp_path / "out3.png")
    assert code == 4
    assert "the folder run holds no run with a saved state" in said.replace("\n", " ")
    code, said = maecli("export", run, "--to", "encoder", "--out", tmp_path / "encoder.pth")
    assert code == 0, said
    assert first_value(load_checkpoint(tmp_path / "encoder.pth")) == 1
    code, said = maecli("compare", "--official", run, "--checkpoint", run, "--reference", "paper")
    assert code == 1, said  # these weights were never trained
    assert "checkpoint-last-1.pth" in said
    code, said = maecli(
        "pretrain", images, "--variant", "vit_tiny", "--image-size", 16, "--patch-size", 8, "--mask-ratio", "0.5",
        "--init", run, "--out", tmp_path / "new",
    )  # fmt: skip
    assert code == 4, said  # found, and of another width
    assert "checkpoint-last-1.pth: cls_token must be (1, 1, 192); got (1, 1, 32)" in said.replace("\n", "")
