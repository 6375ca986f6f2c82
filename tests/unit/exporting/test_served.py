"""The computation of a graph: timm's classifier with the same weights, and a linear probe's formula."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mae.checkpoints import load_checkpoint
from mae.checkpoints.build import build_encoder
from mae.checkpoints.classifiers import folded
from mae.config import MAEConfig
from mae.errors import CheckpointError
from mae.exporting.served import served
from tests.golden import official

SIZES = MAEConfig((16, 16), 8, 3, 32, 2, 2, 32, 1, 2)
CLASSES = 5


def encoder_with(head: dict[str, Tensor], tmp_path: Path) -> Path:
    state = official.checkpoint(SIZES, "encoder")["model"] | head
    if "fc_norm.weight" in head:
        del state["norm.weight"], state["norm.bias"]
    torch.save({"model": state}, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_a_fine_tuned_file_is_timms_classifier(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    head = {"fc_norm.weight": drawn(32), "fc_norm.bias": drawn(32) + 1}
    head |= {"head.weight": drawn(CLASSES, 32), "head.bias": drawn(CLASSES)}
    checkpoint = load_checkpoint(encoder_with(head, tmp_path), num_heads=2)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    theirs = timm.models.VisionTransformer(**sizes, global_pool="avg", fc_norm=True)
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    theirs.load_state_dict(checkpoint.state)
    imgs, _ = official.inputs(SIZES, batch=3)
    with torch.no_grad():
        assert torch.allclose(served(checkpoint, torch.float32)(imgs), theirs.eval()(imgs), atol=1e-5)


def test_a_linear_probe_is_its_formula(tmp_path: Path) -> None:
    head = {"head.0.running_mean": drawn(32), "head.0.running_var": drawn(32).square() + 0.1}
    head |= {"head.0.num_batches_tracked": torch.tensor(7)}
    head |= {"head.1.weight": drawn(CLASSES, 32), "head.1.bias": drawn(CLASSES)}
    checkpoint = load_checkpoint(encoder_with(head, tmp_path), num_heads=2)
    imgs, _ = official.inputs(SIZES)
    with torch.no_grad():
        token = build_encoder(checkpoint)[0].encode(imgs)[:, 0]
        token = (token - head["head.0.running_mean"]) / (head["head.0.running_var"] + 1e-6).sqrt()
        wanted = token @ head["head.1.weight"].T + head["head.1.bias"]
        got = served(dataclasses.replace(checkpoint, state=folded(checkpoint.state)), torch.float32)(imgs)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_without_a_head_it_is_encode_in_any_precision(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(encoder_with({}, tmp_path), num_heads=2)
    imgs, _ = official.inputs(SIZES)
    with torch.no_grad():
        wanted = build_encoder(checkpoint)[0].encode(imgs)
        assert torch.equal(served(checkpoint, torch.float32)(imgs), wanted)
        half = served(checkpoint, torch.float16)(imgs)
    assert half.dtype == torch.float32
    assert 0 < (half - wanted).norm() / wanted.norm() < 1e-2


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"head.fc1.weight": drawn(4, 4)}, "is not one linear layer"),
        ({"head.weight": drawn(CLASSES, 32)}, r"head\.bias must be \(5,\); got nothing"),
        ({"head.weight": drawn(CLASSES, 31), "head.bias": drawn(CLASSES)}, r"head\.weight must be \(5, 32\); got"),
    ],
)
def test_heads_that_cannot_be_exported(head: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        served(load_checkpoint(encoder_with(head, tmp_path), num_heads=2), torch.float32)
