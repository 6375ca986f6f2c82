"""An image in memory gives the same pixels as in a file; other objects are refused with a one-line error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.data.decoding.image import load_image
from mae.data.decoding.in_memory import to_image
from mae.data.transforms import normalise
from mae.errors import ConfigError, DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_a_pillow_image_is_what_its_file_is(tmp_path: Path, mode: str, in_chans: int) -> None:
    path = tmp_path / "image.tif"
    if mode == "I;16":
        Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 200).save(path)
    else:
        Image.fromarray(PIXELS).convert(mode).save(path)
    expected = array(load_image(path, in_chans))
    assert (array(to_image(str(path), in_chans)) == expected).all()
    with Image.open(path) as opened:
        for _ in range(2):  # not read yet, and read
            assert (array(to_image(opened, in_chans)) == expected).all()
        in_memory = opened.copy()
    assert (array(to_image(in_memory, in_chans)) == expected).all()


def test_a_pillow_image_is_turned_upright_and_left_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        upright = to_image(opened, 3)
        assert opened.size == (9, 6)
    assert (array(upright) == np.rot90(PIXELS, -1)).all()
    own = Image.fromarray(PIXELS)
    assert to_image(own, 3) is not own


def test_arrays_and_tensors() -> None:
    for given in (PIXELS, np.asarray(Image.fromarray(PIXELS)), torch.from_numpy(PIXELS).permute(2, 0, 1)):
        assert (array(to_image(given, 3)) == PIXELS).all()
    grey = PIXELS[:, :, 0]
    for given in (grey, grey[:, :, None], grey[:, ::-1][:, ::-1], torch.from_numpy(grey.copy())):
        assert (array(to_image(given, 1)) == grey).all()
        assert (array(to_image(given, 3)) == grey[:, :, None]).all()
    alpha = np.dstack([PIXELS, np.zeros_like(grey)])
    assert (array(to_image(alpha, 3)) == 255).all()


def test_a_tensor_of_floats_is_normalised() -> None:
    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1)
    assert (array(to_image(normalise(pixels), 3)) == PIXELS).all()
    with pytest.raises(ValueError, match=r"floats from 0 to 1 are not normalised; give pixels, \(255"):
        to_image(pixels / 255, 3)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (PIXELS / 255, TypeError, "the image: wanted a path, a PIL image, a uint8 array .* got ndarray of float64"),
        (PIXELS.astype(np.int64), TypeError, "got ndarray of int64"),
        (PIXELS[None], ValueError, r"got ndarray of uint8 \(1, 6, 9, 3\)"),
        (PIXELS[:0], ValueError, r"got ndarray of uint8 \(0, 9, 3\)"),
        (
            torch.from_numpy(PIXELS),
            ValueError,
            r"in a tensor before rows and columns, .* got Tensor of uint8 \(6, 9, 3\)",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.int64), TypeError, "got Tensor of int64"),
        (torch.zeros(2, 3, 4, 4), TypeError, r"got Tensor of float32 \(2, 3, 4, 4\)"),
        (3, TypeError, "got int$"),
        (None, TypeError, "got NoneType$"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        to_image(given, 3)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        pass
    with pytest.raises(DataError, match=r"^it: "):
        to_image(opened, 3, "it")
    with pytest.raises(DataError, match=r"none\.png"):
        to_image(tmp_path / "none.png", 3)
    with pytest.raises(ConfigError, match="5"):
        to_image(PIXELS, 5)
