"""The float64 reference equals the official model's stored values, and every reference equals our model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.comparison.config import CompareConfig
from mae.comparison.reference import Sizes, run_reference
from mae.comparison.run import CompareResult, compare
from tests.golden import official

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = ["golden_tiny", "golden_gray"]
LARGE = ["vit_base", "vit_large", "vit_huge"]
every_size = pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
LIBRARIES = [name for name in ("transformers", "timm") if importlib.util.find_spec(name)]


def written(name: str, tmp_path: Path, kind: str = "full") -> Path:
    path = tmp_path / f"{name}.pth"
    torch.save(official.checkpoint(official.GOLDEN[name], kind), path)
    return path


def compared(name: str, path: Path, reference: str = "auto") -> CompareResult:
    config = official.GOLDEN[name]
    heads = {"num_heads": config.num_heads, "decoder_num_heads": config.decoder_num_heads}
    return compare(CompareConfig(official=path, reference=reference, **heads))


@every_size
def test_the_reference_gives_the_official_values(name: str) -> None:
    """Our model is checked against this reference, so the reference is checked against the official model."""
    config = official.GOLDEN[name]
    expected = np.load(GOLDEN / f"expected/{name}-seed7.npz")
    imgs, noise = official.inputs(config)
    sizes = Sizes(config.patch_size, config.num_heads, config.decoder_num_heads)
    stages = run_reference(official.weights(config), sizes, imgs, noise, 0.75)
    # The values are stored as float32, so they agree to its rounding; vit_huge was also computed in float32.
    near = {"rtol": 1e-4, "atol": 1e-4} if name == "vit_huge" else {"rtol": 1.2e-7, "atol": 1e-9}
    pred = stages["prediction"]
    np.testing.assert_allclose(stages["encoder norm"].numpy()[:, ::7, ::11], expected["latent"], **near)
    np.testing.assert_allclose(stages["encoder norm"].abs().mean(dim=2), expected["latent_mean_abs"], **near)
    np.testing.assert_allclose(pred.numpy()[:, ::13, ::37], expected["pred"], **near)
    np.testing.assert_allclose(pred.abs().mean(dim=2), expected["pred_mean_abs"], **near)
    np.testing.assert_allclose(stages["loss, pixels"], expected["loss_pix"], **near)
    np.testing.assert_allclose(stages["loss, normalised"], expected["loss_norm_pix"], **near)


@every_size
def test_every_reference_agrees(name: str, tmp_path: Path) -> None:
    config = official.GOLDEN[name]
    result = compared(name, written(name, tmp_path))
    assert result.equal, result.verdict
    found = {(one.reference, one.precision): one for one in result.computations}
    assert set(found) == {("paper", "float64"), ("paper", "float32"), *((name, "float64") for name in LIBRARIES)}
    for (_, precision), one in found.items():
        assert one.largest < (1e-12 if precision == "float64" else 1e-5)
    blocks = [f"encoder block {number}" for number in range(config.depth)]
    encoder = ["patch embedding", "visible tokens", *blocks, "encoder norm"]
    decoder = ["decoder embedding", "decoder tokens", *(f"decoder block {n}" for n in range(config.decoder_depth))]
    names = [*encoder, *decoder, "decoder norm", "prediction", "loss, pixels", "loss, normalised"]
    assert [stage.name for stage in found["paper", "float64"].stages] == names
    if "transformers" in LIBRARIES:
        assert {stage.name for stage in found["transformers", "float64"].stages} == set(names) - {"loss, pixels"}
    if "timm" in LIBRARIES:
        assert {stage.name for stage in found["timm", "float64"].stages} == set(encoder)


@pytest.mark.parametrize("kind", ["encoder", "training"])
def test_other_kinds_agree_too(kind: str, tmp_path: Path) -> None:
    result = compared("golden_tiny", written("golden_tiny", tmp_path, kind))
    assert result.equal, result.verdict
    assert result.official.kind == kind
    last = result.computations[0].stages[-1].name
    assert last == ("encoder norm" if kind == "encoder" else "loss, normalised")
    assert any("transformers" in note and "decoder" in note for note in result.notes) == (kind == "encoder")


def test_rectangles_and_many_channels(tmp_path: Path) -> None:
    config = official.GOLDEN["golden_tiny"].replace(img_size=(32, 48), in_chans=5)
    torch.save(official.checkpoint(config), tmp_path / "file.pth")
    result = compare(CompareConfig(official=tmp_path / "file.pth", num_heads=2, decoder_num_heads=4))
    assert result.equal, result.verdict
    assert [one.reference for one in result.computations] == ["paper", "paper", *LIBRARIES[1:]]
    assert any("square" in note for note in result.notes)
