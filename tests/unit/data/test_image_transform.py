"""A model's transform gives the pixels of ``embed`` for every kind of image, and can be inverted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mae
from mae.data.decoding.image import load_image
from mae.data.eval_transform import EvalTransform
from mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
DECODER: dict[str, Any] = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}


def small_model(**changes: Any) -> mae.MaskedAutoencoder:
    torch.manual_seed(0)
    return mae.MaskedAutoencoder(**({"img_size": (32, 24)} | SIZES | DECODER | changes)).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def test_it_says_what_it_does() -> None:
    transform = mae.transforms(small_model())
    assert (transform.size, transform.in_chans, transform.crop_pct) == ((32, 24), 3, 0.875)
    assert (transform.mean, transform.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert mae.transforms(small_model(in_chans=1).config, crop_pct=1.0).mean == (0.449,)
    assert "size=(32, 24)" in repr(transform)
    with pytest.raises(ValueError, match=r"crop_pct must be above 0 and at most 1; got 1\.5"):
        mae.transforms(small_model(), crop_pct=1.5)
    with pytest.raises(TypeError, match="wanted a model of mae, or its MAEConfig; got str"):
        mae.transforms("vit_tiny")  # type: ignore[arg-type]


def test_it_is_the_evaluation_transform(path: Path) -> None:
    expected = normalise(EvalTransform((32, 24))(load_image(path)))
    transform = mae.transforms(small_model())
    for given in (path, str(path), Image.fromarray(PIXELS), PIXELS, torch.from_numpy(PIXELS).permute(2, 0, 1)):
        assert torch.equal(transform(given), expected)
    assert torch.equal(transform(expected), expected)  # normalised already
    assert torch.equal(transform.batch([path, PIXELS]), torch.stack([expected, expected]))
    assert torch.equal(transform.batch(np.stack([PIXELS, PIXELS])), torch.stack([expected, expected]))
    with pytest.raises(ValueError, match="wanted one image or more; got none"):
        transform.batch([])


def test_inverting_gives_the_pixels_back(path: Path) -> None:
    transform = mae.transforms(small_model())
    pixels = transform.pixels(path)
    assert pixels.dtype == torch.uint8
    assert torch.equal(transform.invert(transform(path)), pixels)
    assert torch.equal(transform.invert(transform.batch([path])), pixels[None])


def test_encode_takes_images_as_people_have_them(path: Path) -> None:
    model = small_model()
    imgs = mae.transforms(model)(path)[None]
    with torch.no_grad():
        expected = model.encode(imgs)
        for given in (path, str(path), Image.fromarray(PIXELS), PIXELS, [path], (PIXELS,), [imgs[0]]):
            assert torch.equal(model.encode(given), expected)
        uint8 = mae.transforms(model).invert(imgs)
        assert torch.equal(model.encode(uint8), expected)
        assert torch.equal(model.encode(uint8[0]), expected)
        both = model.encode([path, Image.fromarray(PIXELS[::-1])])
        assert both.shape == (2, *expected.shape[1:])
        assert model.double().encode(path).dtype == torch.float64


def test_encode_of_more_channels_than_pillow_knows() -> None:
    model = small_model(in_chans=5)
    pixels = torch.randint(0, 256, (2, 5, 32, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.encode(pixels), model.encode(normalise(pixels)))
    for given in (torch.zeros(5, 32, 32, dtype=torch.uint8), PIXELS, "image.png"):
        with pytest.raises(ValueError, match=r"for 5 give a uint8 tensor \(5, 32, 24\)"):
            model.encode(given)


def test_a_normalised_tensor_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mae.MaskedAutoencoder, "_transformed", lambda *_: pytest.fail("it was transformed"))
    for number in (torch.float32, torch.float64, torch.bfloat16):
        assert small_model().to(number).encode(torch.zeros(1, 3, 32, 24, dtype=number)).dtype == number


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (torch.zeros(3, 32, 24), ValueError, r"imgs must be \(B, 3, 32, 24\)"),
        (torch.zeros(1, 3, 32, 32), ValueError, r"imgs must be \(B, 3, 32, 24\)"),
        ([torch.zeros(3, 8, 8)], ValueError, "floats from 0 to 1 are not normalised"),
        (torch.zeros(1, 3, 32, 24, dtype=torch.int32), TypeError, "wanted a path, a PIL image"),
        (PIXELS / 255, TypeError, "got ndarray of float64"),
        ({"image": PIXELS}, TypeError, "got dict"),
    ],
)
def test_encode_says_what_it_takes(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        small_model().encode(given)


def test_encode_and_embed_agree(path: Path, tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path / "weights.pth")
    mae.embed(
        path,
        checkpoint=tmp_path / "weights.pth",
        out=tmp_path / "features.npz",
        device="cpu",
        precision="fp32",
        workers=0,
    )
    with torch.no_grad():
        expected = model.encode(path)[:, 1:].mean(dim=1).numpy()
    assert np.array_equal(np.load(tmp_path / "features.npz")["features"], expected)
