"""``maecli export``: every layout is read back bit for bit and gives the same results in its target library."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import mae.exporting.run
from mae.checkpoints import load_checkpoint, save_checkpoint
from mae.checkpoints.build import build_usable
from mae.comparison.config import CompareConfig
from mae.comparison.run import compare
from mae.errors import ConfigError, MaeError
from mae.exporting.config import GRAPHS, TARGETS, ExportConfig
from mae.exporting.run import export
from mae.models import create_model
from maecli.app import app
from tests.golden import official

TINY = official.GOLDEN["golden_tiny"]
WEIGHTS = official.weights(TINY)
LAYOUTS = [name for name in TARGETS if name not in GRAPHS]
HEADS: dict[str, Any] = {"num_heads": 2, "decoder_num_heads": 4}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(official.checkpoint(TINY, "training"), tmp_path / "file.pth")
    return tmp_path / "file.pth"


def maecli(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def same(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(state) == set(wanted)
    assert all(state[key].dtype == tensor.dtype and torch.equal(state[key], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trips_are_bit_equal(to: str, dtype: torch.dtype, tmp_path: Path) -> None:
    state = {key: tensor.to(dtype) for key, tensor in WEIGHTS.items()}
    torch.save({"model": state}, tmp_path / "file.pth")
    result = export(ExportConfig(checkpoint=tmp_path / "file.pth", to=to, **HEADS))
    endings = {"official": "file-official.pth", "encoder": "file-encoder.pth", "timm": "file-timm.safetensors"}
    assert result.out == tmp_path / (endings | {"hf": "file-hf", "safetensors": "file.safetensors"})[to]
    wanted = {key: t for key, t in state.items() if to not in ("encoder", "timm") or not official.is_decoder(key)}
    same(load_checkpoint(result.out).state, wanted)
    assert (result.tensors, result.parameters) == (len(wanted), sum(tensor.numel() for tensor in wanted.values()))
    assert result.difference < 1e-12
    assert result.checked_by == {"hf": "transformers", "timm": "timm"}.get(to, "our own reading")
    # and back to the official layout
    back = export(ExportConfig(checkpoint=result.out, to="official", out=tmp_path / "back.pth", **HEADS))
    same(torch.load(back.out, weights_only=True)["model"], wanted)


@pytest.mark.parametrize("to", LAYOUTS)
def test_permissions_are_the_users(to: str, path: Path) -> None:
    out = export(ExportConfig(checkpoint=path, to=to, **HEADS)).out
    reference = path.parent / "reference"
    reference.touch()
    for file in [out] if out.is_file() else list(out.iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(reference.stat().st_mode)
    assert not list(path.parent.glob(".*"))


def test_what_the_file_knows_travels_along(path: Path) -> None:
    for to in ("official", "safetensors", "hf"):
        again = load_checkpoint(export(ExportConfig(checkpoint=path, to=to, **HEADS)).out)
        assert again.config == TINY.replace(norm_pix_loss=True)
        assert again.norm_pix_loss is True
    rectangle = TINY.replace(img_size=(32, 48), in_chans=2)
    save_checkpoint(path, create_model(rectangle))
    assert load_checkpoint(export(ExportConfig(checkpoint=path, to="safetensors")).out).config == rectangle


def test_what_the_file_does_not_know_is_not_invented(tmp_path: Path) -> None:
    torch.save(official.checkpoint(TINY), tmp_path / "file.pth")
    for to in ("official", "safetensors"):
        assert (
            load_checkpoint(export(ExportConfig(checkpoint=tmp_path / "file.pth", to=to, **HEADS)).out).norm_pix_loss
            is None
        )
    result = export(ExportConfig(checkpoint=tmp_path / "file.pth", to="hf", **HEADS))
    assert any("norm_pix_loss is false in config.json" in note for note in result.notes)


def test_transformers_loads_it_with_nothing_missing_and_predicts_the_same(path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = export(ExportConfig(checkpoint=path, to="hf", **HEADS)).out
    model, loading = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (model.config.layer_norm_eps, model.config.norm_pix_loss, model.config.image_size) == (1e-6, True, 64)
    imgs, noise = official.inputs(TINY)
    ours = build_usable(load_checkpoint(path, **HEADS))
    with torch.no_grad():
        theirs = model.eval()(imgs, noise=noise)
        loss, pred, mask = ours(imgs, 0.75, noise)
    assert torch.equal(theirs.mask, mask)
    assert torch.allclose(theirs.logits, pred, atol=1e-5)
    assert torch.allclose(theirs.loss, loss, rtol=1e-5)


def test_transformers_rounds_no_tensor_of_a_file_in_two_number_formats(tmp_path: Path) -> None:
    """Float16 with float32 position embeddings, as the built-in weights; transformers gives all tensors one format."""
    pytest.importorskip("transformers")
    state = {key: tensor if key.endswith("pos_embed") else tensor.half() for key, tensor in WEIGHTS.items()}
    torch.save({"model": state}, tmp_path / "file.pth")
    result = export(ExportConfig(checkpoint=tmp_path / "file.pth", to="hf", **HEADS))
    assert result.difference < 1e-12
    assert json.loads((result.out / "config.json").read_text())["dtype"] == "float32"
    compared = compare(CompareConfig(official=tmp_path / "file.pth", reference="transformers", **HEADS))
    assert compared.equal


def test_timm_loads_it_and_gives_the_same_features(path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = export(ExportConfig(checkpoint=path, to="timm", **HEADS)).out
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0}
    model = timm.create_model("vit_base_patch16_224.mae", pretrained=False, checkpoint_path=str(file), **sizes)
    imgs, _ = official.inputs(TINY)
    with torch.no_grad():
        features = model.eval().forward_features(imgs)
        ours = build_usable(load_checkpoint(path, **HEADS)).encode(imgs)
    assert torch.allclose(features, ours, atol=1e-5)
    assert set(load_file(file)) == {key for key in WEIGHTS if not official.is_decoder(key)}


def test_a_failed_check_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mae.checkpoints.dialects.LAYER", "x", raising=False)
    original = mae.exporting.run.to_hugging_face

    def exchanged(state: dict[str, Tensor]) -> dict[str, Tensor]:
        foreign = original(state)
        block = "vit.encoder.layer.0.attention.attention"
        foreign[f"{block}.query.weight"], foreign[f"{block}.key.weight"] = (
            foreign[f"{block}.key.weight"],
            foreign[f"{block}.query.weight"],
        )
        return foreign

    monkeypatch.setattr(mae.exporting.run, "to_hugging_face", exchanged)
    with pytest.raises(MaeError, match=r"reads back differently: blocks\.0\.attn\.qkv\.weight") as caught:
        export(ExportConfig(checkpoint=path, to="hf", **HEADS))
    assert caught.value.exit_code == 1
    # Also with the right bits, the other library's computation must agree.
    monkeypatch.setattr(mae.exporting.run, "_check_bits", lambda *_: None)
    with pytest.raises(MaeError, match="transformers computes another prediction"):
        export(ExportConfig(checkpoint=path, to="hf", **HEADS))


@pytest.mark.parametrize(("dtype", "most"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_other_number_formats_and_what_they_cost(dtype: str, most: float, path: Path) -> None:
    result = export(ExportConfig(checkpoint=path, to="safetensors", dtype=dtype, **HEADS))
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    same(load_checkpoint(result.out).state, {key: tensor.to(wanted) for key, tensor in WEIGHTS.items()})
    assert result.dtype == str(wanted).removeprefix("torch.")
    assert result.size_bytes < path.stat().st_size / 2
    assert result.rounding is not None
    assert most / 20 < result.rounding < most
    again = export(ExportConfig(checkpoint=result.out, to="timm", dtype=dtype, out=path.with_name("x")))
    assert again.rounding is None  # it had that format


def test_values_that_fp16_does_not_hold(tmp_path: Path) -> None:
    document = official.checkpoint(TINY)
    for name, key in (("decoder.pth", "decoder_embed.bias"), ("encoder.pth", "norm.bias")):
        weights = {**document["model"], key: torch.full_like(document["model"][key], -70_000.0)}
        torch.save({**document, "model": weights}, tmp_path / name)
    for name, to in (("encoder.pth", "timm"), ("encoder.pth", "torch-export"), ("decoder.pth", "official")):
        with pytest.raises(ConfigError, match=r"--dtype fp16: \w+\.bias holds values above 65,504"):
            export(ExportConfig(checkpoint=tmp_path / name, to=to, dtype="fp16", **HEADS))
    assert export(ExportConfig(checkpoint=tmp_path / "decoder.pth", to="encoder", dtype="fp16", **HEADS)).rounding


def test_refusals(tmp_path: Path, path: Path) -> None:
    torch.save(official.checkpoint(TINY, "encoder"), tmp_path / "encoder.pth")
    rectangle = TINY.replace(img_size=(32, 48))
    torch.save(official.checkpoint(rectangle), tmp_path / "rectangle.pth")
    for source, to, out, message in (
        ("encoder.pth", "hf", None, "has no decoder"),
        ("rectangle.pth", "hf", None, "square images only"),
        ("file.pth", "official", path, "is the checkpoint itself"),
        ("file.pth", "official", tmp_path / "no/x.pth", "there is no folder"),
        ("file.pth", "torch-export", tmp_path / "x.onnx", "the ending of another format"),
        ("file.pth", "hf", tmp_path / "x.pth", "the ending of another format"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(ExportConfig(checkpoint=tmp_path / source, to=to, out=out, **HEADS))
    for to in ("official", "encoder", "timm", "safetensors"):
        assert (
            export(ExportConfig(checkpoint=tmp_path / "encoder.pth", to=to, out=tmp_path / f"x-{to}")).output
            == "features"
        )


def test_the_command(path: Path, tmp_path: Path) -> None:
    heads = ["--num-heads", "2", "--decoder-num-heads", "4"]
    code, out, err = maecli("export", path, "--to", "hf", *heads)
    assert (code, err) == (0, "")
    assert f"wrote {tmp_path / 'file-hf'}: 74 tensors, 753,280 parameters, 3.0 MB" in out
    assert "transformers computes the same prediction" in out
    code, out, _ = maecli("export", path, "--to", "timm", *heads, "--json")
    assert json.loads(out)["checked_by"] == "timm"
    code, out, _ = maecli("export", path, "--to", "timm", *heads, "--quiet")
    assert out == f"{tmp_path / 'file-timm.safetensors'}\n"
    for arguments, message in (
        ([path], "missing --to"),
        (["--to", "timm"], "missing CKPT"),
        ([path, "--to", "gguf"], "--to must be one of official, encoder, timm, hf, safetensors, onnx, torch-export"),
    ):
        code, _, err = maecli("export", *arguments)
        assert code == 2
        assert message in err
