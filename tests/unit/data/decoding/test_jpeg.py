"""A partly decoded or reduced JPEG has the same pixels as the whole one."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from mae.data.decoding.jpeg import JpegHeader, decode_rows, read_header, resolve_decoder
from mae.errors import ConfigError

DECODERS = ["pillow", *(["simplejpeg"] if importlib.util.find_spec("simplejpeg") else [])]


def coded(mode: str = "RGB", size: tuple[int, int] = (101, 83), **options: object) -> bytearray:
    coarse = np.random.default_rng(0).integers(0, 256, (12, 14, 3), np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **({"quality": 90} | options))
    return bytearray(file.getvalue())


def header_of(data: bytearray) -> JpegHeader:
    header = read_header(data)
    assert header is not None
    return header


KINDS = [{"subsampling": sampling, "progressive": scans} for sampling in (0, 1, 2) for scans in (False, True)]
KINDS += [{"restart_marker_rows": 1}, {"restart_marker_blocks": 3, "subsampling": 2}, {"mode": "L"}]


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_first_rows_are_those_of_the_whole(decoder: str, kind: dict[str, object]) -> None:
    data = coded(**kind)  # type: ignore[arg-type]
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    before = bytes(data)
    for rows in (1, 15, 16, 17, 31, 48, 50, 82, 83):
        pixels = decode_rows(data, header_of(data), rows, 8, 3, decoder)
        assert rows <= len(pixels) <= rows + 2
        assert (pixels[:rows] == whole[:rows]).all()
    assert bytes(data) == before


@pytest.mark.skipif(len(DECODERS) < 2, reason="simplejpeg is not installed")
@pytest.mark.parametrize("dct_scale", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_both_decoders_give_the_same_bits(dct_scale: int, channels: int) -> None:
    for kind in KINDS:
        data = coded(**kind)  # type: ignore[arg-type]
        for rows in (40, 83):
            first, second = (decode_rows(data, header_of(data), rows, dct_scale, channels, name) for name in DECODERS)
            assert (first == second).all()


def test_the_header_says_what_is_there() -> None:
    header = header_of(coded(progressive=True, subsampling=0))
    assert (header.rows, header.columns, header.channels) == (83, 101, 3)
    assert header.progressive
    assert not header.has_metadata
    assert header_of(coded("L")).channels == 1
    exif = Image.Exif()
    exif[0x0112] = 6
    assert header_of(coded(exif=exif)).has_metadata


def test_whatever_is_not_usual_is_left_to_pillow() -> None:
    whole = coded()
    for data in (coded("CMYK"), whole[:-200], whole[:300], whole[:3], bytearray(b"\xff\xd8\xff" + bytes(500))):
        assert read_header(data) is None
    # A thumbnail's end in the metadata is not the image's.
    cut = coded(exif=b"Exif\0\0" + b"\xff\xd8\xff\xd9")[:-300]
    assert b"\xff\xd9" in cut
    assert read_header(cut) is None


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_header_is_put_back_after_a_failure(decoder: str) -> None:
    data = coded()
    header = header_of(data)
    wrong = bytes(data[: header.height_at + 40]) + bytes(len(data) - header.height_at - 40)
    broken = bytearray(wrong)
    with pytest.raises((OSError, ValueError)):
        decode_rows(broken, header, 20, 8, 3, decoder)
    assert bytes(broken) == wrong


def test_a_decoder_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert resolve_decoder("auto") == "pillow"
    with pytest.raises(ConfigError, match="--decoder simplejpeg: it is not installed"):
        resolve_decoder("simplejpeg")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert resolve_decoder("auto") == "simplejpeg"
    assert resolve_decoder("pillow") == "pillow"
