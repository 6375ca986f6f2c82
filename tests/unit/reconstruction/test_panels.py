"""Panels, computed by hand: masked patches are grey, visible ones unchanged; loss and PSNR are over masked patches."""

from __future__ import annotations

import math

import pytest
import torch

from mae.data.transforms import denormalise
from mae.mae import MaskedAutoencoder, patch_statistics
from mae.masking import random_masking
from mae.reconstruction.panels import TITLES, make_panels, predict


@pytest.fixture
def model() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(
        (16, 24), 8, embed_dim=32, depth=1, num_heads=2, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2
    ).eval()


@pytest.fixture
def imgs() -> torch.Tensor:
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 0.5


def test_a_perfect_prediction_of_raw_pixels(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6, generator=torch.Generator().manual_seed(2)), 0.5)
    panels = make_panels(model, imgs, masking, model.patchify(imgs), norm_pix=False)[1]
    assert torch.allclose(panels.reconstruction, panels.original, atol=1e-6)
    assert panels.loss == pytest.approx(0, abs=1e-10)
    assert panels.psnr > 100
    removed = masking.mask[1].bool()
    mean = denormalise(torch.zeros(3, 8, 8))
    cells = panels.masked.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(6, 3, 8, 8)
    originals = panels.original.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(6, 3, 8, 8)
    for patch in range(6):
        assert torch.allclose(cells[patch], mean if removed[patch] else originals[patch], atol=1e-6)


def test_normalised_predictions_get_their_patches_statistics_back(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6, generator=torch.Generator().manual_seed(2)), 0.5)
    patches = model.patchify(imgs)
    mean, std = patch_statistics(patches)
    panels = make_panels(model, imgs, masking, (patches - mean) / std, norm_pix=True)[0]
    assert torch.allclose(panels.reconstruction, panels.original, atol=1e-5)
    assert panels.loss == pytest.approx(0, abs=1e-8)


def test_loss_and_psnr_by_hand(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6, generator=torch.Generator().manual_seed(2)), 0.5)
    imgs = imgs * 0
    # The error is 0.1 in normalised units on masked patches, and much larger on visible ones, which must not count.
    pred = model.patchify(imgs) + 0.1 + 5 * (1 - masking.mask).unsqueeze(-1)
    panels = make_panels(model, imgs, masking, pred, norm_pix=False)[0]
    assert panels.loss == pytest.approx(0.01, rel=1e-5)
    noise = sum((0.1 * std) ** 2 for std in (0.229, 0.224, 0.225)) / 3
    assert panels.psnr == pytest.approx(-10 * math.log10(noise), rel=1e-4)
    visible = masking.mask[0] == 0
    cells = panels.with_visible.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(6, -1)
    originals = panels.original.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(6, -1)
    assert torch.equal(cells[visible], originals[visible])
    assert float(panels.reconstruction.max()) == 1  # an image has no brighter pixels, and PSNR is that of images


def test_the_loss_is_the_models_own(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    noise = torch.rand(2, 6, generator=torch.Generator().manual_seed(2))
    masking = random_masking(noise, 0.5)
    with torch.no_grad():
        loss, _, _ = model(imgs, 0.5, noise)
    pred = predict(model, imgs, masking)
    assert not pred.requires_grad
    panels = make_panels(model, imgs, masking, pred, norm_pix=False)
    assert sum(one.loss for one in panels) / 2 == pytest.approx(float(loss), rel=1e-5)


def test_nothing_removed_has_no_numbers(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6), 0.0)
    panels = make_panels(model, imgs, masking, model.patchify(imgs), norm_pix=False)[0]
    assert math.isnan(panels.loss)
    assert math.isnan(panels.psnr)


def cells_of(panel: torch.Tensor) -> torch.Tensor:
    """(3, 16, 24) -> (6, 192): the patches in reading order."""
    return panel.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(6, -1)


def test_what_nothing_trains_is_faint(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6, generator=torch.Generator().manual_seed(2)), 0.5)
    noise = torch.randn(2, 6, 192, generator=torch.Generator().manual_seed(3))
    for number, panels in enumerate(make_panels(model, imgs, masking, noise, norm_pix=False)):
        removed = masking.mask[number].bool()
        faint, raw = cells_of(panels.faint), cells_of(panels.reconstruction)
        assert torch.equal(faint[removed], raw[removed])
        assert torch.allclose(faint[~removed], 0.75 + 0.25 * raw[~removed])
        assert panels.views[2] is panels.faint
        assert len(panels.views) == len(TITLES)


def test_where_nothing_was_removed_nothing_is_faint(model: MaskedAutoencoder, imgs: torch.Tensor) -> None:
    masking = random_masking(torch.rand(2, 6), 0.0)
    panels = make_panels(model, imgs, masking, model.patchify(imgs), norm_pix=False)[0]
    assert torch.equal(panels.faint, panels.reconstruction)
