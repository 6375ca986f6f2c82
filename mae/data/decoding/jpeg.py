"""Decode only the part of a JPEG that a crop needs: its first rows, at an eighth, a quarter, half or full size.

A JPEG is a sequence of coded blocks. Rows below the crop need not be decoded, so the height in the file's header is
reduced to the crop's end. A large crop is decoded at a smaller size: the inverse DCT of the blocks can produce it
directly, and faster than the full size.
"""

from __future__ import annotations

import importlib.util
import io
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.errors import ConfigError

DCT_SCALE = 8  # full size, in eighths
# Rows decoded below the crop's last row, since colour upsampling interpolates with them.
MARGIN = 2
MOST_MARKERS = 10_000  # marker segments before the pixel data; ICC profiles and EXIF take a few dozen

_START_OF_FRAME = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_PROGRESSIVE = 0xC2


class JpegHeader(NamedTuple):
    """The header of a JPEG.

    Attributes:
        rows, columns: Size of the stored image, before it is turned upright.
        channels: 1 or 3.
        height_at: Offset of the height in the file.
        progressive: Whether the image is coded in several scans.
        has_metadata: Whether there is EXIF or XMP, which may give an orientation.
    """

    rows: int
    columns: int
    channels: int
    height_at: int
    progressive: bool
    has_metadata: bool


def resolve_decoder(name: str) -> str:
    """Resolve "auto" to "simplejpeg" if it is installed, else "pillow".

    Raises:
        ConfigError: ``name`` is "simplejpeg", and it is not installed.
    """
    there = importlib.util.find_spec("simplejpeg") is not None
    if name == "auto":
        return "simplejpeg" if there else "pillow"
    if name == "simplejpeg" and not there:
        raise ConfigError(
            "--decoder simplejpeg: it is not installed", hint="pip install 'maecli[fast]', or --decoder pillow"
        )
    return name


def read_header(data: bytearray) -> JpegHeader | None:
    """Read the header of a JPEG; None if it is cut off, or of a kind that is left to Pillow.

    Left to Pillow are CMYK, arithmetic and lossless coding, 12 bits, and files with unexpected content.
    """
    at, frame, has_metadata = 2, None, False
    for _ in range(MOST_MARKERS):
        if data[at : at + 2] == b"\xff\xff":  # padding
            at += 1
            continue
        if at + 4 > len(data) or data[at] != 0xFF:
            return None
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if marker == _START_OF_SCAN:
            break
        if marker in _OTHER_FRAMES or marker == _END_OF_IMAGE or at + 2 + length > len(data):
            return None
        if marker in _START_OF_FRAME:
            if frame is not None or length < 8:
                return None
            bits, rows, columns, channels = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or not rows or not columns or channels not in (1, 3):
                return None
            frame = JpegHeader(rows, columns, channels, at + 5, marker == _PROGRESSIVE, False)
        has_metadata |= marker == _APP1
        at += 2 + length
    else:
        return None
    if frame is None or data.rfind(b"\xff\xd9", at) < 0:
        return None
    return frame._replace(has_metadata=has_metadata)


def decode_rows(
    data: bytearray, header: JpegHeader, rows: int, dct_scale: int, channels: int, decoder: str
) -> NDArray[np.uint8]:
    """Decode the first rows of a JPEG at a scale in eighths.

    Args:
        data: Content of the file; its header is changed during the call.
        header: Result of ``read_header``.
        rows: Number of rows needed, in pixels of the full size.
        dct_scale: Scale in eighths: 1, 2, 4 or 8.
        channels: 1 for luma, 3 for RGB.
        decoder: "pillow" or "simplejpeg".

    Returns:
        (rows, columns, channels) uint8, at the scaled size.

    Raises:
        Exception: Of any kind, for a damaged file.
    """
    needed = min(header.rows, rows + MARGIN)
    size = -(-needed * dct_scale // DCT_SCALE), -(-header.columns * dct_scale // DCT_SCALE)
    struct.pack_into(">H", data, header.height_at, needed)
    try:
        pixels = (_simplejpeg if decoder == "simplejpeg" else _pillow)(
            data, needed, header.columns, dct_scale, channels
        )
    finally:
        struct.pack_into(">H", data, header.height_at, header.rows)
    if pixels.shape != (*size, channels):
        raise ValueError(f"wanted {(*size, channels)} pixels; got {pixels.shape}")
    return pixels


def _simplejpeg(data: bytearray, rows: int, columns: int, dct_scale: int, channels: int) -> NDArray[np.uint8]:
    import simplejpeg

    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        "GRAY" if channels == 1 else "RGB",
        min_height=-(-rows * dct_scale // DCT_SCALE),
        min_width=-(-columns * dct_scale // DCT_SCALE),
        strict=False,  # the rows below the last wanted one would be reported as damage
    )
    return pixels


def _pillow(data: bytearray, rows: int, columns: int, dct_scale: int, channels: int) -> NDArray[np.uint8]:
    mode = "L" if channels == 1 else "RGB"
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(mode, (max(1, columns * dct_scale // DCT_SCALE), max(1, rows * dct_scale // DCT_SCALE)))
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)
