"""The read-out of frozen features measures what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.checkpoints import save_checkpoint

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def read_out() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_out", ROOT / "benchmarks" / "read_out.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clusters(seed: int, each: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Three clouds in four dimensions, far apart in direction."""
    stream = torch.Generator().manual_seed(seed)
    centres = torch.eye(4)[:3] * 5
    points = centres.repeat_interleave(each, 0) + torch.randn(3 * each, 4, generator=stream)
    return points, torch.arange(3).repeat_interleave(each)


def test_separated_clouds_are_told_apart_and_noise_is_not(read_out: ModuleType) -> None:
    (train, labels), (test, truth) = clusters(0), clusters(1)
    assert read_out.knn_accuracy(train, labels, test, truth) > 0.95
    assert read_out.linear_accuracy(train, labels, test, truth)[0] > 0.95
    noise = torch.randn(len(train), 4, generator=torch.Generator().manual_seed(2))
    assert read_out.knn_accuracy(noise, labels, noise.flip(0), truth) < 0.7
    assert read_out.linear_accuracy(noise, labels, noise.flip(0), truth)[0] < 0.6


def test_nearer_neighbours_weigh_more(read_out: ModuleType) -> None:
    """One at the same place outvotes two a little further away."""
    train = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6]])
    labels, test = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]])
    assert read_out.knn_accuracy(train, labels, test, torch.tensor([0])) == 1.0


def test_a_zip_file_and_a_checkpoint_give_one_document(
    read_out: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Red against blue pictures: pixels tell them apart, labels come from folders, paths of the machine stay out."""
    stream = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for part, count in (("train", 20), ("test", 6)):
            for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
                for number in range(count):
                    noise = stream.normal(0, 20, (16, 16, 3)) + np.array(colour)
                    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                    with archive.open(f"{part}/{label}/{number}.png", "w") as file:
                        picture.save(file, format="PNG")
    model = mae.mae_vit_tiny_patch16(img_size=16, patch_size=8, depth=1, decoder_depth=1)
    save_checkpoint(tmp_path / "tiny.pth", model)
    words = ["--checkpoint", "tiny.pth", "--train", "pictures.zip/train", "--test", "pictures.zip/test"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["read_out.py", *words, "--untrained", "1", "--test-each", "4", "--out", "out.json"]
    )
    read_out.main()
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["pictures"] == {"train": 40, "test": 8, "classes": 2}
    assert report["rows"]["pixels"]["knn"] == report["rows"]["pixels"]["linear"] == 1.0
    assert {"trained, class token", "trained, mean of patches", "untrained, seed 0, class token"} <= set(report["rows"])
    assert str(tmp_path) not in json.dumps(report)
    assert "wrote out.json" in capsys.readouterr().out
