"""Crops have the positions of torchvision's crops and are resampled as Pillow does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mae.data.crop import Box, draw_box, offset_error, resample

SIZES = [(300, 451), (640, 427), (224, 224), (7, 5), (1, 1), (3, 2000), (2000, 3), (50, 100)]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.08, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0)])
def test_boxes_are_torchvisions(
    rows: int, columns: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    image = Image.new("L", (columns, rows))
    generator = torch.Generator()
    with torch.random.fork_rng([]):
        for seed in range(40):
            torch.manual_seed(seed)
            expected = RandomResizedCrop.get_params(image, list(scale), list(ratio))
            assert draw_box(rows, columns, scale, generator.manual_seed(seed), ratio) == expected
            # The generator is in the same state afterwards.
            assert torch.equal(torch.rand(1), torch.rand(1, generator=generator))


def photo(rows: int = 90, columns: int = 120) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (rows // 6, columns // 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("box", [Box(0, 0, 90, 120), Box(11, 23, 64, 50), Box(80, 100, 10, 20), Box(5, 5, 1, 1)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_whole_pixels_are_pillows(box: Box, channels: int) -> None:
    pixels = np.concatenate([photo(), photo()[::-1]], axis=2)[:, :, :channels]
    top, left, height, width = (int(side) for side in box)
    part = pixels[top : top + height, left : left + width]
    image = Image.fromarray(part if channels > 1 else part[:, :, 0])
    expected = np.asarray(image.resize((32, 24), Image.Resampling.BICUBIC), int).reshape(24, 32, channels)
    difference = np.abs(resample(pixels, box, (24, 32)).numpy() - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize("top", [0.5, 7.25, 20.5, 30.75])
def test_a_fraction_of_a_pixel_moves_the_image_by_it(top: float) -> None:
    """On a linear ramp, every pixel's value gives its position."""
    ramp = np.repeat(np.arange(90, dtype=np.uint8)[:, None] * 2, 80, axis=1)[:, :, None]
    box = Box(top, top, 50.5, 45.5)
    pixels = resample(ramp, box, (30, 28)).numpy()[:, :, 0].astype(float)
    expected = 2 * (top + (np.arange(30) + 0.5) * 50.5 / 30 - 0.5)
    step = 50.5 / 30
    inner = slice(2, -2)
    assert np.abs(pixels[inner].mean(axis=1) - expected[inner]).max() <= 2 * offset_error(top, step) + 0.6
    assert (pixels == pixels[:, :1]).all()
    across = resample(ramp.transpose(1, 0, 2), Box(top, top, 45.5, 50.5), (28, 30)).numpy()[:, :, 0]
    assert (pixels == across.T).all()


def test_beginnings_are_found_within_the_tolerance() -> None:
    steps = np.random.default_rng(0).uniform(1.3, 3, 500)
    errors = [offset_error(100 + fraction, step) for step in steps for fraction in (0.125, 0.25, 0.5, 0.875)]
    assert np.mean(errors) < 0.03
    assert offset_error(0.0, 1.7) == 0
    assert offset_error(0.5, 1.7) == 0.5  # there are no pixels before it
