"""Cropping and resizing keep the aspect ratio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.transforms import (
    crop_to,
    denormalise,
    image_to_tensor,
    normalise,
    pixel_statistics,
    tensor_to_image,
    to_8_bits,
    whole_size,
)


def disc(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    inside = (x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2 < (min(width, height) / 3) ** 2
    return Image.fromarray((inside * 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(90, 60), (60, 90), (64, 64), (30, 20)])
@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_a_disc_stays_a_disc(width: int, height: int, size: tuple[int, int]) -> None:
    framed = np.asarray(crop_to(disc(width, height), size)) > 127
    assert framed.shape == size
    across, down = framed.any(axis=0).sum(), framed.any(axis=1).sum()
    assert abs(int(across) - int(down)) <= 2


def test_a_image_of_the_right_size_is_untouched() -> None:
    image = Image.effect_noise((48, 32), 60)
    assert (np.asarray(crop_to(image, (32, 48))) == np.asarray(image)).all()


def test_the_whole_images_frame_has_its_shape_and_about_the_area() -> None:
    rows, columns = whole_size(Image.new("L", (640, 320)), (224, 224), 16)
    assert (rows, columns) == (160, 320)
    assert whole_size(Image.new("L", (1000, 3)), (32, 32), 16)[0] == 16


@pytest.mark.parametrize(("width", "height"), [(5000, 1), (1, 5000), (20_000, 10), (10, 20_000)])
@pytest.mark.parametrize(("side", "shorter"), [(32, 16), (224, 32), (1024, 128)])
def test_no_frame_is_far_longer_than_the_square_it_stands_for(width: int, height: int, side: int, shorter: int) -> None:
    rows, columns = whole_size(Image.new("1", (width, height)), (side, side), 16)
    assert max(rows, columns) == 8 * side
    assert min(rows, columns) == shorter
    assert (rows > columns) == (height > width)


def test_normalise_is_inverted_and_uses_imagenet() -> None:
    pixels = image_to_tensor(Image.effect_noise((8, 8), 60).convert("RGB"))
    values = normalise(pixels)
    expected = (pixels[1, 0, 0].item() / 255 - 0.456) / 0.224
    assert values[1, 0, 0].item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(image_to_tensor(tensor_to_image(denormalise(values))), pixels)
    assert to_8_bits(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]
    assert [pixel_statistics(channels)[0].flatten().tolist() for channels in (1, 4)] == [
        [pytest.approx(0.449)] * channels for channels in (1, 4)
    ]


def test_normalise_goes_where_its_images_are() -> None:
    """For any default device of torch, and after a call in any mode."""
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (pixels.float() / 255 - mean) / std
    with torch.device("meta"):
        assert torch.equal(normalise(pixels), expected)
    assert normalise(pixels.to("meta")).is_meta
    with torch.inference_mode():
        normalise(pixels)
    wanted = normalise(pixels).requires_grad_()
    denormalise(wanted).sum().backward()
    assert wanted.grad is not None
    assert torch.equal(normalise(pixels), expected)
