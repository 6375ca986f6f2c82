"""The evaluation transform gives the pixels of the official validation transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mae.data.eval_transform import EvalTransform
from mae.data.transforms import image_to_tensor


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(300, 400), (401, 299), (299, 401), (399, 299), (256, 256), (231, 500), (60, 225)])
def test_equals_resize_and_centre_crop(size: tuple[int, int]) -> None:
    """``Resize(256, bicubic)`` and ``CenterCrop(224)`` on the same image give the same bytes."""
    official = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    image = noise(*size)
    assert torch.equal(EvalTransform((224, 224))(image), image_to_tensor(official(image)))


def test_a_hairline_is_not_scaled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled as a whole, a line of 60000 x 1 pixels would take 15 GB at 224 pixels; the crop's pixels are the same."""
    line = noise(240, 3)
    limited = EvalTransform((32, 32))(line)
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def noted(image: Image.Image, size: tuple[int, int], *details: object, **named: object) -> Image.Image:
        sizes.append(size)
        return resize(image, size, *details, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "resize", noted)
    EvalTransform((32, 32))(line)
    EvalTransform((32, 16))(noise(2, 500))
    assert sizes == [(36, 36), (18, 36)]
    monkeypatch.setattr("mae.data.eval_transform.LONGEST_SHAPE", 1000)
    assert torch.equal(EvalTransform((32, 32))(line), limited)
    assert sizes[-1] == (2880, 36)


def test_larger_frames_keep_the_whole_shorter_side() -> None:
    official = v2.Compose([v2.Resize(256, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(256)])
    image = noise(300, 270)
    assert torch.equal(EvalTransform((256, 256))(image), image_to_tensor(official(image)))
    assert EvalTransform((224, 256)).crop_pct == EvalTransform((256, 224)).crop_pct == 1


def test_an_image_of_the_frames_size_is_taken_as_it_is_and_a_smaller_one_whole() -> None:
    image = noise(32, 32)
    assert torch.equal(EvalTransform((32, 32))(image), image_to_tensor(image))
    whole = image_to_tensor(image.resize((64, 64), Image.Resampling.BICUBIC))
    assert torch.equal(EvalTransform((64, 64))(image), whole)
    assert not torch.equal(EvalTransform((64, 64))(noise(65, 65))[:, :1], whole[:, :1])


def test_rectangles_are_covered_and_cropped_evenly() -> None:
    """A size of 16 x 32 from an image of 64 x 64: its full width, the middle half of its height."""
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 16, 64, 48))
    pixels = EvalTransform((16, 32), crop_pct=1.0)(image)
    assert pixels.shape == (3, 16, 32)
    assert pixels[:, 2:-2].min() == 255


def test_the_crops_share_can_be_chosen() -> None:
    image = noise(100, 100)
    inner = image_to_tensor(image.resize((64, 64), Image.Resampling.BICUBIC).crop((16, 16, 48, 48)))
    assert torch.equal(EvalTransform((32, 32), crop_pct=0.5)(image), inner)
