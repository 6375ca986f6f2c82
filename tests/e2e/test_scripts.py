"""The scripts that make the documents' figures and images."""

from __future__ import annotations

import importlib.util
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mae
from maecli.app import app

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_the_cifar_run_trains_its_size_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = np.random.default_rng(0)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for number in range(6):
        pixels = stream.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / "cat" / f"{number}.png")
    words = [tmp_path / "train", "--epochs", 2, "--batch-size", 3, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["cifar10.py", *map(str, words)])
    run = script("cifar10")
    run.main()
    run.main()
    assert capsys.readouterr().out.count("2 epochs, 4 steps") == 2
    config = mae.load_checkpoint(tmp_path / "run" / "checkpoint-last.pth").config
    assert (config.depth, config.embed_dim, config.decoder_depth, config.decoder_embed_dim) == (6, 192, 2, 96)
    assert (config.img_size, config.patch_size, config.norm_pix_loss) == ((32, 32), 4, True)


def test_a_run_becomes_the_built_in_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, checksum, a recipe that trains the same, and a card whose figures are about these weights alone."""
    stream = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stream.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    sources = "set\timages\tsource\tcommit\tlicence\na\t3\tour own\t-\tCC0 1.0\nb\t2\tour own\t0123456789ab\tMIT\n"
    (tmp_path / "SOURCES.tsv").write_text(sources)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2} | dict.fromkeys(("decoder_num_heads", "decoder_depth"), 1)
    mae.pretrain(
        tmp_path / "photos" / "train",
        **sizes,
        decoder_embed_dim=16,
        image_size=32,
        patch_size=8,
        batch_size=2,
        epochs=2,
        lr=1e-3,
        warmup_epochs=0,
        workers=0,
        norm_pix_loss=False,
        device="cpu",
        log_every=1,
        out=tmp_path / "run",
    )
    made = script("builtin_weights")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(made, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(made, "FACTS_FILE", tmp_path / "results" / "builtin_training.json")
    other = {"name": "other weights", "weights_sha256": "0" * 64, "rows": []}
    (tmp_path / "results" / "features_other.json").write_text(json.dumps(other))
    out = tmp_path / "weights"
    words = [tmp_path / "run", "--sources", tmp_path / "SOURCES.tsv", "--out", out]
    monkeypatch.setattr(sys, "argv", ["builtin_weights.py", *map(str, words)])
    made.main()
    assert "is about other weights" in capsys.readouterr().out

    monkeypatch.setenv("MAECLI_BUILTIN", str(out))
    trained, stored = mae.from_pretrained(tmp_path / "run").state_dict(), mae.load_checkpoint("builtin").state
    assert trained.keys() == stored.keys()
    for key, tensor in stored.items():
        assert tensor.dtype == (torch.float32 if key.endswith("pos_embed") else torch.float16)
        assert torch.allclose(tensor.float(), trained[key], atol=1e-3)
    monkeypatch.chdir(tmp_path)
    recipe = tomllib.loads((out / "config.toml").read_text())
    assert (recipe["data"], recipe["out"]) == (["photos/train"], "builtin")
    done = CliRunner().invoke(app, ["pretrain", "--config", str(out / "config.toml")])
    assert done.exit_code == 0, done.output
    again = mae.from_pretrained("builtin").state_dict()  # the run's folder, which comes first
    assert all(torch.equal(again[key], tensor) for key, tensor in trained.items())
    card = (out / "MODEL_CARD.md").read_text()
    assert (out / "builtin.sha256").read_text().split()[0] in card
    assert "5 photographs, without labels" in card
    assert "| b | 2 | our own at 0123456789 | MIT |" in card
    assert card.count("Not measured yet for these weights.") == 3
    assert str(tmp_path) not in card + (out / "config.toml").read_text()


def test_loss_lines_by_hand() -> None:
    """Flat patches of two greys: their own colour is no error, zero costs their mean square."""
    lines = script("loss_lines")
    imgs = torch.ones(2, 3, 16, 16)
    imgs[:, :, :, 8:] = 3.0
    rows = lines.lines(imgs, 4)
    assert rows["own mean colour (an oracle)"]["raw"] == pytest.approx(0, abs=1e-9)
    assert 1 <= rows["zero"]["raw"] <= 9
    nearest = lines.nearest_visible(torch.tensor([[0.0, 1, 1, 1, 1, 1, 1, 1, 0]]), 3)
    assert nearest.tolist() == [[0, 0, 0, 0, 0, 8, 0, 8, 8]]


def test_slopes_are_fitted_exactly() -> None:
    lines = script("loss_lines")
    imgs = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    rows = lines.lines(imgs, 8)
    assert rows["own mean colour and slope (an oracle)"]["raw"] == pytest.approx(0, abs=1e-9)
    assert rows["own mean colour (an oracle)"]["raw"] > 1e-3
    assert rows["zero"]["normalised"] == pytest.approx(191 / 192, abs=1e-3)


def test_a_terminal_is_drawn_as_it_stands_at_the_end() -> None:
    """A line that was drawn over shows what came last; lines above a cursor that went up are kept."""
    shots = script("screenshots")
    assert shots.screen("first\r\nold\r\x1b[2K\x1b[1mnew\x1b[0m\r\n").splitlines() == ["first", "\x1b[1mnew\x1b[0m"]
    assert shots.screen("10%\r20%\r\ndone").splitlines() == ["20%", "done"]
    assert shots.screen("a\r\nb\x1b[1A\r\x1b[2Kc").splitlines() == ["c", "b"]
    image = shots.draw("one <two>", 40, "title")
    texts = [element for element in ElementTree.fromstring(image).iter() if element.tag.endswith("text")]
    line = next(element for element in texts if element.text and "two" in element.text)
    assert len(line.attrib["x"].split()) == len(line.text or "") == len("one\u00a0<two>")
    assert "http://" not in image.replace("http://www.w3.org", "")
    assert "cdnjs" not in image


def test_a_curve_shows_every_epoch(tmp_path: Path) -> None:
    curve = script("curve")
    log = tmp_path / "log.jsonl"
    lines = [{"epoch": n, "train_loss": 1 - n / 10, "train_lr": 1e-3 * n} for n in range(4)]
    log.write_text("\n".join(json.dumps(line) for line in [{"step": 1, "loss": 2.0}, *lines]))
    image = ElementTree.fromstring(curve.draw(curve.read(log), 0.98))
    points = [one.attrib["points"].split() for one in image.iter() if one.tag.endswith("polyline")]
    assert [len(one) for one in points] == [4, 4]
    heights = [float(point.split(",")[1]) for point in points[1]]
    assert heights == sorted(heights)  # a falling loss goes down the page
