"""Graphs: another program that reads the file computes the same as the model, for any batch size."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mae.exporting.graphs
import mae.exporting.run
from mae.checkpoints import load_checkpoint
from mae.checkpoints.build import build_encoder
from mae.config import MAEConfig
from mae.errors import ConfigError, MaeError
from mae.exporting.config import ExportConfig
from mae.exporting.run import export
from tests.golden import official

SIZES = MAEConfig((16, 24), 8, 3, 32, 1, 2, 32, 1, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(official.checkpoint(SIZES), tmp_path / "file.pth")
    return tmp_path / "file.pth"


def images(batch: int) -> Tensor:
    return official.inputs(SIZES, batch=batch)[0]


def features(path: Path, imgs: Tensor) -> Tensor:
    with torch.no_grad():
        return build_encoder(load_checkpoint(path, num_heads=2))[0].encode(imgs)


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() / other.norm() < 1e-5)


def test_onnx_runs_in_onnxruntime(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(mae.exporting.graphs, "LARGEST_ALONE", 1000)  # so that the weights have a file of their own
    result = export(ExportConfig(checkpoint=path, to="onnx", num_heads=2))
    assert (result.out, result.checked_by, result.output) == (path.with_suffix(".onnx"), "onnxruntime", "features")
    assert result.difference < 1e-5
    assert result.rounding is None
    weights = path.with_name("file.onnx.data")
    assert result.size_bytes == weights.stat().st_size > result.out.stat().st_size
    session = runtime.InferenceSession(str(result.out), providers=["CPUExecutionProvider"])
    (given,), (got,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, 16, 24])
    assert (got.name, got.shape) == ("features", ["batch", 7, 32])
    for batch in (1, 2, 5):
        output = torch.from_numpy(session.run(None, {"images": images(batch).numpy()})[0])
        assert close(output, features(path, images(batch)))
    described = session.get_modelmeta().custom_metadata_map
    assert json.loads(described["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(described["image_size"]) == [16, 24]
    reference = path.parent / "reference"
    reference.touch()
    assert {stat.S_IMODE(file.stat().st_mode) for file in (result.out, weights, reference)} == {0o644}
    assert not list(path.parent.glob(".*"))


@pytest.mark.slow
def test_onnx_in_fp16(path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = export(ExportConfig(checkpoint=path, to="onnx", dtype="fp16", num_heads=2))
    assert result.dtype == "float16"
    assert result.rounding is not None
    assert 1e-5 < result.rounding < 1e-2


def test_torch_export_of_a_classifier(path: Path) -> None:
    state = official.checkpoint(SIZES, "encoder")["model"]
    state |= {"head.weight": torch.ones(4, 32), "head.bias": torch.arange(4.0)}
    torch.save({"model": state}, path)
    result = export(ExportConfig(checkpoint=path, to="torch-export", num_heads=2))
    assert (result.out, result.output) == (path.with_suffix(".pt2"), "logits")
    assert result.difference < 1e-5
    extra: dict[str, Any] = {"maecli.json": ""}
    loaded = torch.export.load(result.out, extra_files=extra).module()
    assert json.loads(extra["maecli.json"])["output"] == "logits"
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    torch.save({"model": state}, path)
    wanted = features(path, images(3))[:, :1].sum(-1) + torch.arange(4.0)
    assert close(loaded(images(3)), wanted)


def test_a_graph_that_computes_something_else_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae.exporting.run, "write_graph", lambda to, out, model: path)
    monkeypatch.setattr(mae.exporting.run, "read_graph", lambda to, out: lambda imgs: 1.001 * features(path, imgs))
    with pytest.raises(MaeError, match=r"torch\.export computes another features with it .* 1\.0e-03; tolerance 1e-05"):
        export(ExportConfig(checkpoint=path, to="torch-export", num_heads=2))


def test_without_the_libraries_it_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae.exporting.graphs, "_NEEDED", ("onnx", "no_such_module"))
    with pytest.raises(ConfigError, match=r"--to onnx needs .*no_such_module") as caught:
        export(ExportConfig(checkpoint=path, to="onnx"))
    assert caught.value.hint == "pip install 'maecli[onnx]'"


def test_what_cannot_be_checked_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="onnxruntime has no bf16 on a CPU"):
        ExportConfig(checkpoint=path, to="onnx", dtype="bf16")
