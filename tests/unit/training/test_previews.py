"""A run's pictures are drawn as ``reconstruct`` draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae.checkpoints import save_checkpoint
from mae.config import ReconstructConfig
from mae.data.scan import scan_pictures
from mae.figure import GAP, MARGIN, TITLE_SIZE
from mae.mae import MaskedAutoencoder
from mae.reconstruct import reconstruct
from mae.training.previews import Previews


@pytest.mark.parametrize("norm_pix", [False, True])
def test_the_panels_are_those_of_reconstruct(norm_pix: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    model = MaskedAutoencoder(32, 8, decoder_num_heads=2, norm_pix_loss=norm_pix, **sizes).eval()  # type: ignore[arg-type]
    save_checkpoint(tmp_path / "weights.pth", model, args={"norm_pix_loss": norm_pix})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos/photo.png")
    pictures = scan_pictures([tmp_path / "photos"]).pictures
    previews = Previews(model, pictures, None, 0.75)
    psnr = previews.draw(tmp_path / "preview.png", 1)
    result = reconstruct(
        ReconstructConfig((tmp_path / "photos",), tmp_path / "weights.pth", tmp_path / "grid.png", device="cpu")
    )
    assert result.pictures[0].psnr == pytest.approx(psnr, rel=1e-5)
    top = MARGIN + TITLE_SIZE + 8
    panels = [
        np.asarray(Image.open(tmp_path / name))[top : top + 192, MARGIN : MARGIN + 4 * 192 + 3 * GAP]
        for name in ("preview.png", "grid.png")
    ]
    assert (panels[0] == panels[1]).all()
    reconstruction = panels[0][:, 2 * (192 + GAP) :][:, :192].reshape(4, 48, 4, 48, 3)
    is_faint = (reconstruction >= round(0.75 * 255)).all(axis=(1, 3, 4)).reshape(-1)
    assert torch.equal(torch.from_numpy(is_faint), previews.masking.mask[0] == 0)
