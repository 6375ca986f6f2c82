"""One picture through a small model: masks, frames, targets and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.checkpoints import save_checkpoint
from mae.config import ReconstructConfig
from mae.errors import CheckpointError, ConfigError, DataError
from mae.mae import MaskedAutoencoder
from mae.reconstruct import reconstruct


def small_model(**changes: object) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    return MaskedAutoencoder(**({"img_size": 32, "patch_size": 8, "decoder_num_heads": 2} | sizes | changes))  # type: ignore[arg-type]


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.load()
        return picture


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (5, 8, 3), dtype=np.uint8)).resize((80, 50), Image.Resampling.BICUBIC).save(
        path
    )
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    save_checkpoint(path, small_model(), args={"norm_pix_loss": False})
    return path


@pytest.fixture
def config(picture: Path, weights: Path, tmp_path: Path) -> ReconstructConfig:
    return ReconstructConfig(images=(picture,), checkpoint=weights, out=tmp_path / "grid.png", device="cpu")


def test_a_grid_and_its_numbers(config: ReconstructConfig) -> None:
    result = reconstruct(config)
    page = opened(config.out)
    assert page.format == "PNG"
    assert page.width > 4 * 192
    (one,) = result.pictures
    assert (one.image_size, one.mask_ratio) == ((32, 32), 0.75)
    assert one.loss > 0
    assert 0 < one.psnr < 40
    assert not result.norm_pix
    assert result.norm_pix_source == "checkpoint"


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".JPEG", "JPEG")])
def test_the_suffix_chooses_the_format(config: ReconstructConfig, tmp_path: Path, suffix: str, kind: str) -> None:
    reconstruct(dataclasses.replace(config, out=tmp_path / f"grid{suffix}"))
    assert opened(tmp_path / f"grid{suffix}").format == kind


def test_the_default_seed_gives_the_published_mask(config: ReconstructConfig, tmp_path: Path) -> None:
    published = json.loads((Path(__file__).parents[1] / "golden/golden_mask_seed2.json").read_text())["mask"]
    weights = tmp_path / "fourteen.pth"
    save_checkpoint(weights, small_model(img_size=224, patch_size=16), args={"norm_pix_loss": False})
    result = reconstruct(dataclasses.replace(config, checkpoint=weights, separate=tmp_path / "panels"))
    names = [path.name for path in result.separate]
    assert names == [f"001-photo-{name}.png" for name in ("original", "masked", "reconstruction", "with-visible")]
    masked = np.asarray(opened(tmp_path / "panels/001-photo-masked.png")).reshape(14, 16, 14, 16, 3)
    flat = (masked == (124, 116, 104)).all(axis=(1, 3, 4)).reshape(-1)
    assert flat.astype(int).tolist() == published


def test_several_ratios_share_the_noise_and_make_columns(config: ReconstructConfig) -> None:
    one = opened(reconstruct(config).out).width
    result = reconstruct(dataclasses.replace(config, mask_ratio=(0.5, 0.75, 0.9)))
    assert [picture.mask_ratio for picture in result.pictures] == [0.5, 0.75, 15 / 16]
    assert opened(result.out).width > 1.6 * one


def test_an_own_mask_removes_what_is_white(config: ReconstructConfig, tmp_path: Path) -> None:
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[1, 2] = mask[3, 0] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST).save(path)
    result = reconstruct(dataclasses.replace(config, mask=path, separate=tmp_path / "panels"))
    assert result.pictures[0].mask_ratio == 2 / 16
    masked = np.asarray(opened(tmp_path / "panels/001-photo-masked.png")).reshape(4, 8, 4, 8, 3)
    assert ((masked == (124, 116, 104)).all(axis=(1, 3, 4)) == (mask > 0)).all()
    for value, message in ((0, "removes no patch"), (255, "removes every patch")):
        Image.new("L", (8, 8), value).save(path)
        with pytest.raises(DataError, match=message):
            reconstruct(dataclasses.replace(config, mask=path))


def test_a_whole_picture_gets_a_frame_of_its_shape(config: ReconstructConfig) -> None:
    result = reconstruct(dataclasses.replace(config, resize=True))
    assert result.pictures[0].image_size == (24, 40)
    assert any("sine-cosine" in note for note in result.notes)


def test_another_frame_is_said_aloud(config: ReconstructConfig) -> None:
    result = reconstruct(dataclasses.replace(config, image_size=(64, 48)))
    assert result.pictures[0].image_size == (64, 48)
    assert any("4x4 patches in the file, 8x6 here" in note for note in result.notes)
    with pytest.raises(ConfigError, match="not a whole number of patches"):
        reconstruct(dataclasses.replace(config, image_size=(60, 48)))


def test_what_the_decoder_predicts(config: ReconstructConfig, tmp_path: Path) -> None:
    for stated, override, expected, source in (
        (True, "auto", True, "checkpoint"),
        (True, "off", False, "option"),
        (False, "on", True, "option"),
    ):
        weights = tmp_path / f"{stated}.pth"
        save_checkpoint(weights, small_model(norm_pix_loss=stated), args={"norm_pix_loss": stated})
        result = reconstruct(dataclasses.replace(config, checkpoint=weights, norm_pix=override))
        assert (result.norm_pix, result.norm_pix_source) == (expected, source)
        assert any("taken from the original" in note for note in result.notes) == expected


def test_a_silent_file_is_asked_by_its_predictions(config: ReconstructConfig, tmp_path: Path) -> None:
    """A decoder that always predicts a bright picture fits raw pixels of a bright picture, and not normalised ones."""
    bright = tmp_path / "bright.png"
    Image.effect_noise((40, 40), 20).point(lambda value: 200 + value // 8).convert("RGB").save(bright)
    for bias, expected in ((1.7, False), (0.0, True)):
        model = small_model()
        with torch.no_grad():
            model.decoder.pred.weight.zero_()
            model.decoder.pred.bias.fill_(bias)
        weights = tmp_path / "silent.pth"
        torch.save({"model": model.state_dict()}, weights)
        result = reconstruct(dataclasses.replace(config, images=(bright,), checkpoint=weights))
        assert (result.norm_pix, result.norm_pix_source) == (expected, "inferred")
        assert any("does not say what its decoder predicts" in note for note in result.notes)


def test_folders_skip_what_is_broken_and_named_files_do_not(config: ReconstructConfig, picture: Path) -> None:
    broken = picture.parent / "broken.jpg"
    broken.touch()
    result = reconstruct(dataclasses.replace(config, images=(picture.parent,)))
    assert [one.path for one in result.pictures] == [picture]
    assert [path for path, _ in result.skipped] == [broken]
    with pytest.raises(DataError, match=r"broken\.jpg"):
        reconstruct(dataclasses.replace(config, images=(picture, broken)))


def test_grey_and_alpha_models(config: ReconstructConfig, tmp_path: Path) -> None:
    for in_chans in (1, 4):
        weights = tmp_path / f"{in_chans}.pth"
        save_checkpoint(weights, small_model(in_chans=in_chans), args={"norm_pix_loss": False})
        assert reconstruct(dataclasses.replace(config, checkpoint=weights)).pictures[0].loss > 0


def test_refusals(config: ReconstructConfig, tmp_path: Path) -> None:
    encoder = {key: value for key, value in small_model().state_dict().items() if "decoder" not in key}
    del encoder["mask_token"]
    torch.save({"model": encoder}, tmp_path / "encoder.pth")
    with pytest.raises(CheckpointError, match="encoder only") as caught:
        reconstruct(dataclasses.replace(config, checkpoint=tmp_path / "encoder.pth"))
    assert caught.value.hint is not None
    assert "mae_visualize_vit_base" in caught.value.hint
    with pytest.raises(ConfigError, match="no folder"):
        reconstruct(dataclasses.replace(config, out=tmp_path / "none/grid.png"))
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        dataclasses.replace(config, out=tmp_path / "grid.tif")
    with pytest.raises(ConfigError, match="--mask and several"):
        dataclasses.replace(config, mask=tmp_path / "m.png", mask_ratio=(0.5, 0.6))
    with pytest.raises(ConfigError, match="leaves none"):
        reconstruct(dataclasses.replace(config, mask_ratio=(0.99,)))
