"""Previews: drawn like ``reconstruct``, with a note on normalised patches, and the loss of predicting zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.checkpoints import save_checkpoint
from mae.data.sources.scan import scan_images
from mae.data.transforms import normalise
from mae.errors import DataError
from mae.mae import MaskedAutoencoder
from mae.models import create_model, variant_config
from mae.reconstruction.config import ReconstructConfig
from mae.reconstruction.grid import GAP, MARGIN, TITLE_SIZE
from mae.reconstruction.run import reconstruct
from mae.training import previews as module
from mae.training.previews import Previews, held_out_images


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_panels_are_those_of_reconstruct(norm_pix: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    model = MaskedAutoencoder(32, 8, decoder_num_heads=2, norm_pix_loss=norm_pix, **sizes).eval()  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "weights.pth", model, args={"norm_pix_loss": norm_pix})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos/photo.png")
    images = scan_images([tmp_path / "photos"]).images
    previews = Previews(model, images, None, 0.75)
    psnr = previews.draw(tmp_path / "preview.png", 1)
    assert previews.draw(tmp_path / "of_another_process.png", 1, write=False) == psnr
    assert not (tmp_path / "of_another_process.png").exists()
    result = reconstruct(
        ReconstructConfig((tmp_path / "photos",), tmp_path / "weights.pth", tmp_path / "grid.png", device="cpu")
    )
    assert result.images[0].psnr == pytest.approx(psnr, rel=1e-5)
    top = MARGIN + TITLE_SIZE + 8
    panels = [
        np.asarray(Image.open(tmp_path / name))[top : top + 192, MARGIN : MARGIN + 4 * 192 + 3 * GAP]
        for name in ("preview.png", "grid.png")
    ]
    assert (panels[0] == panels[1]).all()
    reconstruction = panels[0][:, 2 * (192 + GAP) :][:, :192].reshape(4, 48, 4, 48, 3)
    is_faint = (reconstruction >= round(0.75 * 255)).all(axis=(1, 3, 4)).reshape(-1)
    assert torch.equal(torch.from_numpy(is_faint), previews.masking.mask[0] == 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images, alternately white and black."""
    for number in range(8):
        Image.new("RGB", (32, 32), "white" if number % 2 else "black").save(tmp_path / f"{number}.png")
    return tmp_path


def previews(photos: Path, *, norm_pix_loss: bool) -> Previews:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 1, "decoder_depth": 1}
    model = create_model(variant_config("vit_tiny", norm_pix_loss=norm_pix_loss, **sizes))
    return Previews(model, scan_images([photos]).images, None, 0.75)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_caption_says_where_the_original_helps(
    norm_pix_loss: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []

    def drawn(titles: object, rows: object, note: str) -> Image.Image:
        notes.append(note)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(module, "draw_grid", drawn)
    previews(photos, norm_pix_loss=norm_pix_loss).draw(tmp_path / "page.png", 3)
    assert notes[0].startswith("Epoch 3, training images.")
    assert ("are taken from the original, which raises the PSNR." in notes[0]) == norm_pix_loss


def test_zero_is_held_against_raw_pixels_of_more_than_the_previews(photos: Path) -> None:
    """The four images of the preview are black; the other images are not."""
    black, white = (normalise(torch.full((1, 3, 1, 1), value, dtype=torch.uint8)) for value in (0, 255))
    wanted = float((black.square().mean() + white.square().mean()) / 2)
    assert previews(photos, norm_pix_loss=False).zero_prediction_loss == pytest.approx(wanted, rel=1e-5)
    assert float(black.square().mean()) != pytest.approx(wanted, rel=0.05)


def test_photographs_that_are_not_there_are_named_with_their_option(tmp_path: Path) -> None:
    assert held_out_images(None) is None
    with pytest.raises(DataError, match=r"--val .*none: no such folder") as caught:
        held_out_images(tmp_path / "none")
    assert caught.value.hint is not None
    with pytest.raises(DataError, match="--val no image in"):
        held_out_images(tmp_path)


def test_images_that_were_not_tried_are_not_called_broken(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for number in range(50):
        (tmp_path / f"{number:02}.png").write_bytes(content[:60])
    with pytest.raises(DataError, match="none of the 40 images that were tried for the previews"):
        previews(tmp_path, norm_pix_loss=True)
