"""Examines one image file: format, channels, size, hash of its bytes, and whether it can be decoded."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from mae.data.decoding.formats import FORMATS, HEAD_BYTES, ImageError, describe_failure, metered
from mae.data.decoding.image import decode_image
from mae.data.sources.base import ImageSource

HASH_BYTES = 16
_GREY_16, _GREY_32 = "grey, 16 bits", "grey, 32 bits"
DEEP = (_GREY_16, _GREY_32)  # channels of integers that are scaled to 8 bits
_THUMBNAIL = 192  # pixels of its longer side
_JPEG_QUALITY = 80

# Pillow's mode -> channels as text.
_CHANNELS = {
    "1": "grey, 1 bit",
    "L": "grey",
    "LA": "grey + alpha",
    "P": "palette",
    "PA": "palette + alpha",
    "RGB": "RGB",
    "RGBA": "RGB + alpha",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
    "I": _GREY_32,
    "F": "grey, floating point",
}


class Decoded(NamedTuple):
    """An image that was decoded.

    Attributes:
        mean, square: Mean and mean square of the pixels (0 to 1) of each RGB channel, (3,).
        thumbnail: Thumbnail as JPEG; empty if none is needed.
        brightest: Highest of the 256 levels in any channel.
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    thumbnail: bytes
    brightest: int


class Facts(NamedTuple):
    """Properties of one image file.

    Attributes:
        number: Number of the image in the source.
        size_bytes: Size of the file.
        digest: Hash of the file's bytes; empty if not requested.
        format, channels: Format and channels as text; empty if the file is unreadable.
        width, height: Size of the stored image in pixels.
        reason: Why the file cannot be read; empty if it can.
        decoded: Result of decoding; None if not requested.
    """

    number: int
    size_bytes: int
    digest: bytes
    format: str = ""
    channels: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    decoded: Decoded | None = None


class FactsDataset(Dataset[Facts]):
    """The images of a source, examined.

    Args:
        source: All images.
        duplicates: Whether to hash every file.
        decode: Numbers of the images to decode.
        thumbnails: Numbers of the decoded images of which thumbnails are made.
    """

    def __init__(
        self, source: ImageSource, *, duplicates: bool, decode: frozenset[int], thumbnails: frozenset[int] = frozenset()
    ) -> None:
        self.source = source
        self.duplicates = duplicates
        self.decode = decode
        self.thumbnails = thumbnails

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Facts:
        try:
            with self.source.open(number) as file:
                return self._look(number, file)
        except ImageError as error:
            return Facts(number, 0, b"", reason=error.reason)
        except OSError as error:
            return Facts(number, 0, b"", reason=describe_failure(error))

    def _look(self, number: int, file: IO[bytes]) -> Facts:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        digest = b""
        if self.duplicates:
            digest = _digest(file)
        name, head = self.source.name(number), b""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in ``decode_image``
                head = file.read(HEAD_BYTES)
                file.seek(0)
                with Image.open(metered(file, name), formats=FORMATS) as image:
                    kind, channels = image.format or "", _channels(image)
                    width, height = image.size
            decoded = None
            if number in self.decode:
                file.seek(0)
                decoded = _decoded(decode_image(file, name), number in self.thumbnails)
        except Exception as error:  # a damaged file can raise almost anything from inside a decoder
            return Facts(number, size, digest, reason=describe_failure(error, head))
        return Facts(number, size, digest, kind, channels, width, height, decoded=decoded)


def _digest(file: IO[bytes]) -> bytes:
    """Hash of a file's bytes, read in pieces; the file is rewound afterwards."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    while piece := file.read(1 << 20):
        digest.update(piece)
    file.seek(0)
    return digest.digest()


def _channels(image: Image.Image) -> str:
    return _GREY_16 if image.mode.startswith("I;16") else _CHANNELS.get(image.mode, image.mode)


def _decoded(image: Image.Image, drawn: bool) -> Decoded:
    histogram = np.array(image.histogram(), np.float64).reshape(3, 256)
    values = np.arange(256) / 255
    shares = histogram / histogram.sum(axis=1, keepdims=True)
    file = io.BytesIO()
    if drawn:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
    brightest = int(np.flatnonzero(histogram.any(axis=0))[-1])
    return Decoded(shares @ values, shares @ values**2, file.getvalue(), brightest)


def as_list(facts: list[Facts]) -> list[Facts]:
    """Collate function of the loader: returns the list unchanged."""
    return facts
