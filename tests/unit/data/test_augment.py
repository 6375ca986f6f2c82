"""Augmented images have the official pixels with each decoder, orientation and kind of damage."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mae.data.augment import Augmentation, JpegImage
from mae.data.decoding.formats import ImageError
from mae.data.decoding.image import load_image, open_image
from tests.torture.images import all_cases, write_all

DECODERS = ["pillow", *(["simplejpeg"] if importlib.util.find_spec("simplejpeg") else [])]
SIZE = (32, 48)


def scene(columns: int, rows: int) -> Image.Image:
    coarse = np.random.default_rng(columns).integers(0, 256, (rows // 8, columns // 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BICUBIC)


def coded(image: Image.Image, kind: str = "JPEG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 90} | options))
    file.seek(0)
    return file


def official(file: io.BytesIO, seed: int) -> np.ndarray:
    """Torchvision's own transforms on Pillow's image."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
        ]
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return np.asarray(augment(Image.open(file).convert("RGB")), float)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_small_images_are_the_official_ones_but_for_rounding(decoder: str, kind: str) -> None:
    augment = Augmentation(SIZE, 3, decoder=decoder)
    file = coded(scene(80, 56), kind)
    for seed in range(20):
        file.seek(0)
        difference = np.abs(augment(file, "x", seed).numpy() - official(file, seed))
        assert difference.max() <= 2
        assert difference.mean() < 0.3


@pytest.mark.parametrize("decoder", DECODERS)
def test_large_images_are_the_official_ones_within_the_stated_difference(decoder: str) -> None:
    augment = Augmentation(SIZE, 3, decoder=decoder)
    file = coded(scene(640, 480))
    differences, sizes = [], set()
    for seed in range(30):
        file.seek(0)
        jpeg = augment._as_jpeg(file, "it")
        assert isinstance(jpeg, JpegImage)
        differences.append(np.abs(augment(file, "x", seed).numpy() - official(file, seed)).mean())
        sizes.add(jpeg.dct_scale(_box(seed), SIZE))
    assert sizes >= {2, 4}  # else nothing was decoded smaller
    assert np.mean(differences) < 1.2
    assert max(differences) < 4


def _box(seed: int) -> Any:
    from mae.data.crop import draw_box

    return draw_box(480, 640, (0.2, 1.0), torch.Generator().manual_seed(seed))


@pytest.mark.skipif(len(DECODERS) < 2, reason="simplejpeg is not installed")
@pytest.mark.parametrize("in_chans", [1, 3])
def test_the_decoder_changes_no_bit(in_chans: int) -> None:
    file = coded(scene(640, 480))
    for seed in range(10):
        crops = []
        for decoder in DECODERS:
            file.seek(0)
            crops.append(Augmentation(SIZE, in_chans, decoder=decoder)(file, "x", seed))
        assert torch.equal(*crops)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("orientation", range(10))
def test_a_turned_photograph_is_upright(decoder: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = coded(scene(640, 480), exif=exif)
    augment = Augmentation(SIZE, 3, decoder=decoder)
    upright = io.BytesIO()
    from mae.data.decoding.image import decode_image

    file.seek(0)
    decode_image(file, "x").save(upright, "PNG")
    for seed in range(6):
        file.seek(0)
        upright.seek(0)
        difference = augment(file, "x", seed).float() - augment(upright, "x", seed).float()
        assert difference.abs().mean() < 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Written only once, because writing takes longer than reading."""
    return write_all(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("in_chans", [1, 2, 3, 4])
def test_the_corpus_comes_out_or_is_refused(corpus: dict[str, Path], decoder: str, in_chans: int) -> None:
    """Files of many pieces, which take long to refuse, are tried with one number of channels and one decoder.

    The decoders differ only in JPEGs.
    """
    augment = Augmentation((16, 16), in_chans, decoder=decoder)
    for case in all_cases():
        once = in_chans == 3 and (decoder == "pillow" or case.name.endswith(".jpg"))
        if case.name.startswith(("pieces", "text_many")) and not once:
            continue
        if case.refused is not None:
            with pytest.raises(ImageError), open_image(corpus[case.name]) as file:
                augment(file, corpus[case.name], 0)
        else:
            with open_image(corpus[case.name]) as file:
                assert augment(file, corpus[case.name], 0).shape == (16, 16, in_chans)


@pytest.mark.parametrize("decoder", DECODERS)
def test_damage_in_the_codes_is_met_as_pillow_meets_it(tmp_path: Path, decoder: str) -> None:
    """A JPEG has no checksum: libjpeg continues after a damaged code, and so do both decoders."""
    whole = coded(scene(160, 120)).getvalue()
    augment = Augmentation((120, 160), 3, (1.0, 1.0), hflip=False, decoder=decoder)
    rng = np.random.default_rng(0)
    for _ in range(40):
        data = bytearray(whole)
        for at in rng.integers(600, len(whole) - 2, 3):
            data[at] ^= int(rng.integers(1, 256))
        path = tmp_path / "flipped.jpg"
        path.write_bytes(data)
        try:
            expected = np.asarray(load_image(path))
        except ImageError:
            with pytest.raises(ImageError), path.open("rb") as file:
                augment(file, path, 0)
            continue
        with path.open("rb") as file:
            assert np.abs(augment(file, path, 0).numpy().astype(int) - expected).max() <= 2
