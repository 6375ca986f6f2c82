"""Every kind of image is decoded upright, to 8 bits, with the right colours."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae.data.decoding.formats import ImageError
from mae.data.decoding.image import load_image
from mae.errors import ConfigError, DataError


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)), tmp_path / "grey.png")
    pixels = np.asarray(load_image(path))
    assert pixels.shape == (8, 8, 3)
    assert (pixels == np.arange(64).reshape(8, 8, 1)).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    path = save(Image.fromarray(values), tmp_path / f"deep{suffix}")
    assert np.asarray(load_image(path, 1)).tolist() == [[0, 1, 128, 255]]
    assert np.asarray(load_image(path, 3))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_tiff_in_0_to_1(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), tmp_path / "float.tiff")
    assert np.asarray(load_image(path, 1)).tolist() == [[0, 128, 255]]


def test_float_tiff_with_nan_is_refused_by_name(tmp_path: Path) -> None:
    path = save(Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32)), tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float\.tiff: holds NaN"):
        load_image(path)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    # Fully transparent pixels hide arbitrary colours, here red, that must not show.
    path = save(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), tmp_path / "clear.png")
    assert np.asarray(load_image(path)).tolist() == np.full((4, 4, 3), 255).tolist()
    assert np.asarray(load_image(path, 1)).tolist() == np.full((4, 4), 255).tolist()
    assert load_image(path, 4).getpixel((0, 0)) == (255, 0, 0, 0)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 255, 0, 255, 0])
    image.putdata([0, 1])
    path = save(image, tmp_path / "palette.png", transparency=0)
    assert np.asarray(load_image(path)).tolist() == [[[255, 255, 255], [0, 255, 0]]]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), tmp_path / "print.jpg", quality=95)
    red, green, blue = load_image(path).getpixel((8, 8))
    assert red > 240
    assert max(green, blue) < 15
    assert load_image(path, 1).mode == "L"


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright = load_image(save(image, tmp_path / "turned.png", exif=exif))
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


def test_one_bit_and_two_channels(tmp_path: Path) -> None:
    path = save(Image.new("1", (2, 2), 1), tmp_path / "bits.png")
    assert load_image(path).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(path, 2).getpixel((0, 0)) == (255, 255)


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    path = save(Image.new("RGB", (4, 4), "blue"), tmp_path / "image.png")
    assert load_image(path.rename(tmp_path / "image.dat")).getpixel((0, 0)) == (0, 0, 255)


def test_broken_files_are_named_with_the_reason(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    page = tmp_path / "page.jpg"
    page.write_text("<html></html>")
    whole = save(Image.effect_noise((64, 64), 80), tmp_path / "whole.png").read_bytes()
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    for path, reason in (
        (empty, "is empty"),
        (page, "is a web page"),
        (cut, "cannot be decoded .Truncated"),
        (tmp_path / "none.jpg", "no such file"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(DataError, match=rf"{path.name}.*{reason}") as caught:
            load_image(path)
        assert caught.value.exit_code == 3


def test_five_channels_are_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--in-chans 5"):
        load_image(tmp_path / "any.png", 5)


def test_an_error_about_an_image_can_be_sent_by_a_process() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "is empty")))
    assert (type(error), str(error), error.reason) == (ImageError, "a.jpg: is empty", "is empty")
