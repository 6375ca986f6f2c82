"""The scripts that make the figures and images of the documentation."""

from __future__ import annotations

import argparse
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


def test_every_way_to_learn_runs(tmp_path: Path) -> None:
    """A short run on a few images of two classes, a bright and a dark one."""
    learning, stream = script("learning"), np.random.default_rng(0)
    for number in range(160):
        folder = tmp_path / ("dark", "light")[number % 2]
        folder.mkdir(exist_ok=True)
        pixels = stream.integers(0, 128, (16, 16, 3), dtype=np.uint8) + np.uint8(127 * (number % 2))
        Image.fromarray(pixels).save(folder / f"{number}.png")
    sizes = {"image_size": 16, "patch_size": 4, "labelled": 60, "held_out": 20}
    found = learning.run(argparse.Namespace(data=tmp_path, minutes=1e-5, points=2, **sizes), "cross", seed=0)
    assert found["linear"] > 0.8  # the accuracy without training
    assert (found["arm"], found["images_seen"]) == ("cross", 64)
    assert [point["minutes"] for point in found["curve"]] == [0, 5e-6, 1e-5]
    assert found["curve"][-1]["linear"] == found["linear"]
    images, _ = learning.read(tmp_path, 16)
    for name in ("small", "muon", "half", "blocks", "growing", "average"):  # other names differ from these by numbers
        arm = learning.ARMS[name]
        model = learning.make_model(arm, 16, 4)
        training = learning.Training(model, arm, images, torch.Generator().manual_seed(0))
        for share in (0.2, 0.8):
            training.step(share)
            size = 12 if name == "growing" and share == 0.2 else 16
            assert model.config.img_size == (size, size)
            trained = {name: value.clone() for name, value in model.named_parameters()}
            with training.final_weights():
                assert model.config.img_size == (16, 16)
                changed = not all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
            assert changed == (name == "average")
            assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters())
        found = training.facts()
        assert found["loss"] < 10
        assert (found["steps"], found["images_seen"]) == (2, 2 * arm.batch_size)


def test_ways_to_learn_do_what_they_say() -> None:
    learning = script("learning")
    model = mae.create_model("vit_tiny", img_size=16, patch_size=4, depth=1, decoder_depth=1)
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    predicted = []
    hook = model.decoder.pred.register_forward_hook(lambda module, args, out: predicted.append(out.shape[1]))
    for arm in (learning.Arm(), learning.Arm(predicted=0.5), learning.Arm(mask_ratio=0.5)):
        learning.pretraining_loss(model, arm, pixels, torch.Generator().manual_seed(0))
    hook.remove()
    assert predicted == [12, 6, 8]
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(learning.orthogonalised(matrices))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_a_run_becomes_the_built_in_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, checksum, a recipe that repeats the training, and a card whose figures are for these weights."""
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
    again = mae.from_pretrained("builtin").state_dict()  # the run folder is the first argument
    assert all(torch.equal(again[key], tensor) for key, tensor in trained.items())
    card = (out / "MODEL_CARD.md").read_text()
    assert (out / "builtin.sha256").read_text().split()[0] in card
    assert "5 photographs, without labels" in card
    assert "| b | 2 | our own at 0123456789 | MIT |" in card
    assert card.count("Not measured yet for these weights.") == 3
    assert str(tmp_path) not in card + (out / "config.toml").read_text()


def test_loss_lines_by_hand() -> None:
    """Flat patches of two greys: predicting their colour has no error, predicting zero has their mean square."""
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
    """A line that was overwritten shows the last text; lines above a cursor that moved up are kept."""
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
    assert heights == sorted(heights)  # a falling loss goes down in the image
