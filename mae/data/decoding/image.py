"""Decode an image of any format into upright 8-bit channels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

from mae.data.decoding.channels import MODES, with_channels
from mae.data.decoding.formats import (
    FORMATS,
    HEAD_BYTES,
    MAX_READS,
    ImageError,
    check_scans,
    check_size,
    describe_failure,
    metered,
    open_regular,
)
from mae.data.decoding.orientation import turn_of
from mae.errors import ConfigError
from mae.io.text import shown

# Without a handler, Python would print what Pillow logs about damaged files; our errors say the same.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def check_channels(in_chans: int) -> None:
    """Refuse a number of channels that no image file can be decoded to.

    Raises:
        ConfigError: Not 1, 2, 3 or 4.
    """
    if in_chans not in MODES:
        raise ConfigError(
            f"--in-chans {in_chans}: image files are read as 1 (grey), 2 (grey + alpha), 3 (RGB) or 4 (RGB + alpha) "
            "channels",
            hint="the library's model takes any number of channels as tensors",
        )


def load_image(path: Path, in_chans: int = 3, on_note: Callable[[str], None] | None = None) -> Image.Image:
    """Decode an image file; see ``decode_image``.

    Raises:
        DataError: The file cannot be read as an image; the message names it and says why.
        ConfigError: Image files cannot have this number of channels.
    """
    check_channels(in_chans)
    with open_image(path) as file:
        return decode_image(file, path, in_chans, on_note)


def open_image(path: Path, *, limited: bool = True) -> IO[bytes]:
    """Open a file for ``decode_image``; ``limited`` refuses one over 512 MiB.

    Raises:
        DataError: The file cannot be opened, or is not a regular file.
    """
    try:
        return open_regular(path, limited=limited)
    except OSError as error:
        raise ImageError(path, describe_failure(error, path=path)) from None


def probe_image(path: Path) -> str | None:
    """The reason why a file is not an image, or None if it begins as one; its pixels are not decoded."""
    try:
        with open_regular(path) as file:
            return probe_open(file)
    except (OSError, ImageError) as error:
        return describe_failure(error, path=path)


def probe_open(file: IO[bytes]) -> str | None:
    """``probe_image`` of an open file."""
    head = b"\0"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = file.read(HEAD_BYTES)
            file.seek(0)
            with Image.open(metered(file, "the file"), formats=FORMATS):
                return None
    except Exception as error:  # as in ``decode_image``
        return describe_failure(error, head)


def decode_image(
    file: IO[bytes], name: str | Path, in_chans: int = 3, on_note: Callable[[str], None] | None = None
) -> Image.Image:
    """Decode an image upright, with the wanted channels, 8 bits each.

    The EXIF orientation is applied. Of an animation or a document with pages the first frame is used. Grey of more
    than 8 bits and floats are scaled, not clipped. Transparent pixels are blended with white unless alpha is a wanted
    channel. Palettes, CMYK and other colour spaces are converted to RGB without their ICC profiles, as in the official
    pipeline. Grey is repeated for three channels, and colour is converted to luma for one channel.

    Args:
        file: Open for reading, and it can seek.
        name: What messages call it.
        in_chans: 1 (L), 2 (LA), 3 (RGB) or 4 (RGBA).
        on_note: Called with messages for the user about the image, for instance its number of frames.

    Raises:
        DataError: It cannot be read as an image; the message names it and says why.
        ConfigError: Image files cannot have this number of channels.
    """
    check_channels(in_chans)
    head = b""
    try:
        with warnings.catch_warnings():
            # Not errors here: large photographs, whose size is checked below, and damaged EXIF data.
            warnings.simplefilter("ignore")
            head = file.read(HEAD_BYTES)
            file.seek(0)
            with Image.open(metered(file, name), formats=FORMATS) as opened:
                _check_before_decoding(opened, file, name)
                upright = _decode(opened, MODES[in_chans])
                if on_note is not None and (more := _frames(opened)):
                    on_note(f"{shown(name)}: the first of its {more} is used")
                return upright
    except Exception as error:  # a damaged file can raise almost anything from inside a decoder
        raise ImageError(name, describe_failure(error, head)) from None


def upright_image(opened: Image.Image, name: str | Path, in_chans: int = 3) -> Image.Image:
    """Convert a PIL image as ``decode_image`` would; returns a copy.

    Args:
        opened: An image of any mode, loaded or not.
        name: Name of the image in messages.
        in_chans: As for ``decode_image``.

    Raises:
        DataError: The image cannot be read.
        ConfigError: Image files cannot have this number of channels.
    """
    check_channels(in_chans)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(opened, MODES[in_chans])
    except Exception as error:  # as above
        raise ImageError(name, describe_failure(error)) from None


def _check_before_decoding(opened: ImageFile.ImageFile, file: IO[bytes], name: str | Path) -> None:
    check_size(name, opened)
    if opened.format in ("JPEG", "MPO") and "progressive" in opened.info:
        check_scans(name, file)
    if opened.format == "TIFF":  # Pillow leaves pixels black that no strip or tile covers
        extents = [tile.extents for tile in opened.tile if tile.extents is not None]
        covered = sum((right - left) * (bottom - top) for left, top, right, bottom in extents)
        if covered < opened.width * opened.height:
            raise ImageError(name, f"holds {covered:,} of its {opened.width * opened.height:,} pixels")
    if opened.format == "PNG":  # Pillow verifies the checksums of pixel data only on request
        place = file.tell()
        file.seek(0)
        with Image.open(metered(file, name), formats=("PNG",)) as checked:
            checked.verify()
        file.seek(place)


def _decode(opened: Image.Image, mode: str) -> Image.Image:
    """Decode the open image; the bit depth, which Pillow ignores, is taken from its header."""
    tiles = getattr(opened, "tile", ())  # empty for an image that is decoded already, or was made in memory
    rawmode = tiles[0].args if opened.format == "PNG" and tiles else None
    opened.load()
    most, inverted = _grey_scale(opened)
    clear = opened.info.get("transparency")
    if rawmode in ("L;2", "L;4") and isinstance(clear, int):
        opened.info["transparency"] = clear * (85 if rawmode == "L;2" else 17)
    elif rawmode == "RGB;16B" and isinstance(clear, tuple):
        opened.info["transparency"] = tuple(value >> 8 for value in clear)
    transpose = turn_of(opened).transpose
    image = with_channels(opened, mode, most, inverted)
    if transpose is not None:
        return image.transpose(transpose)
    return image.copy() if image is opened else image  # a copy does not keep the file open


def _frames(opened: Image.Image) -> str:
    """The number of frames or pages as text, for instance "12 frames"; empty for one."""
    try:
        frames = getattr(opened, "n_frames", 1)
    except ImageError:  # too many to count
        frames = MAX_READS
    except Exception:  # damaged after the first frame
        return ""
    word = {"TIFF": "pages", "MPO": "images"}.get(opened.format or "", "frames")
    if frames >= MAX_READS:
        return f"many {word}"
    return f"{frames:,} {word}" if frames > 1 else ""


def _grey_scale(opened: Image.Image) -> tuple[int | None, bool]:
    """The value of white in a grey TIFF of unusual depth (None if usual), and whether 0 is white."""
    tags = getattr(opened, "tag_v2", None)
    if tags is None or opened.mode not in ("I;16", "I;16B"):
        return None, False
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    return 2 ** bits[0] - 1 if isinstance(bits, tuple) else None, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
