"""The official augmentation of one image: decode, crop, resample, flip (Paper: Appendix A.1)."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import warnings
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mae.data.crop import RATIO, Box, draw_box, offset_error, resample
from mae.data.decoding.formats import MAX_SCANS, ImageError, describe_failure, most_pixels
from mae.data.decoding.image import decode_image
from mae.data.decoding.jpeg import DCT_SCALE, JpegHeader, decode_rows, read_header
from mae.data.decoding.orientation import UPRIGHT, Turn, turn_of

# A JPEG is decoded at a smaller size only if the crop still has this many times the pixels needed along each side.
OVERSAMPLING = 1.3
LARGEST_OFFSET_ERROR = 0.1


class FullImage(NamedTuple):
    """A decoded image: pixels (rows, columns, C) uint8 as stored, and the turn that makes it upright."""

    pixels: NDArray[np.uint8]
    turn: Turn

    @property
    def stored_size(self) -> tuple[int, int]:
        """(rows, columns) before it is turned."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def dct_scale(self, box: Box, size: tuple[int, int]) -> int:
        """Always ``DCT_SCALE``, the full size."""
        return DCT_SCALE

    def decode(self, rows: int, dct_scale: int) -> NDArray[np.uint8]:
        """All pixels, of which the first ``rows`` are needed."""
        return self.pixels


class JpegImage(NamedTuple):
    """A JPEG that is decoded only as far as a crop needs."""

    data: bytearray
    header: JpegHeader
    turn: Turn
    channels: int
    decoder: str

    @property
    def stored_size(self) -> tuple[int, int]:
        """(rows, columns) before it is turned."""
        return self.header.rows, self.header.columns

    def dct_scale(self, box: Box, size: tuple[int, int]) -> int:
        """The smallest decoding size, in eighths, with enough pixels for a box and a small enough position error."""
        for dct_scale in (1, 2, 4):
            small = box.scaled(dct_scale / DCT_SCALE)
            steps = small.height / size[0], small.width / size[1]
            if (
                min(steps) >= OVERSAMPLING
                and max(offset_error(small.top, steps[0]), offset_error(small.left, steps[1])) <= LARGEST_OFFSET_ERROR
            ):
                return dct_scale
        return DCT_SCALE

    def decode(self, rows: int, dct_scale: int) -> NDArray[np.uint8]:
        """The first rows, at a DCT scale in eighths."""
        return decode_rows(self.data, self.header, rows, dct_scale, self.channels, self.decoder)


@dataclasses.dataclass
class Augmentation:
    """RandomResizedCrop (bicubic) and a horizontal flip.

    The crop's box is drawn as torchvision draws it. The pixels equal those of the official pipeline up to rounding,
    except that a large JPEG is decoded at a smaller size if the crop has more pixels than needed.

    Attributes:
        image_size: Size of a crop in pixels, (rows, columns).
        in_chans: Channels.
        crop_scale: Smallest and largest fraction of an image's area that a crop covers.
        hflip: Whether to flip crops horizontally with probability 0.5.
        decoder: Decoder of common JPEGs, "pillow" or "simplejpeg"; from ``resolve_decoder``.
        crop_ratio: Smallest and largest aspect ratio of a crop, columns / rows.
    """

    image_size: tuple[int, int]
    in_chans: int
    crop_scale: tuple[float, float] = (0.2, 1.0)
    hflip: bool = True
    decoder: str = "pillow"
    crop_ratio: tuple[float, float] = RATIO

    def __call__(self, file: IO[bytes], name: str | Path, seed: int) -> Tensor:
        """Augment the image in an open file; (rows, columns, C) uint8.

        Args:
            file: An open, seekable file.
            name: Name of the image in messages.
            seed: Seed of the augmentation, from the run's seed, the epoch and the image.

        Raises:
            DataError: It cannot be read as an image.
        """
        jpeg = self._as_jpeg(file, name)
        if jpeg is not None:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # as in ``decode_image``
                    return self.crop(jpeg, seed)
            except Exception:  # damaged: Pillow reads it all the same, or says what is wrong
                file.seek(0)
        return self.crop(self._whole(file, name), seed)

    def crop(self, image: JpegImage | FullImage, seed: int) -> Tensor:
        """Crop and flip as the seed says; (rows, columns, C) uint8."""
        generator = torch.Generator().manual_seed(seed)
        turn, (rows, columns) = image.turn, image.stored_size
        rows, columns = (columns, rows) if turn.swap else (rows, columns)
        box = turn.stored(draw_box(rows, columns, self.crop_scale, generator, self.crop_ratio), rows, columns)
        size = (self.image_size[1], self.image_size[0]) if turn.swap else self.image_size
        dct_scale = image.dct_scale(box, size)
        pixels = image.decode(math.ceil(box.top + box.height), dct_scale)
        crop = turn.apply(resample(pixels, box.scaled(dct_scale / DCT_SCALE), size))
        flip = self.hflip and torch.rand(1, generator=generator).item() < 0.5
        return crop.flip(1) if flip else crop

    def keepable(self, file: IO[bytes], name: str | Path, room: int) -> FullImage | None:
        """The decoded image, if crops of it are always taken from its whole size; it may be kept and cropped again.

        Args:
            file, name: As for a call.
            room: Bytes for its pixels; a JPEG known to take more is not decoded whole.

        Raises:
            DataError: It cannot be read as an image.
        """
        jpeg = self._as_jpeg(file, name)
        if jpeg is None:
            return self._whole(file, name)
        if min(jpeg.stored_size) / 2 >= OVERSAMPLING * min(self.image_size):
            return None
        if math.prod(jpeg.stored_size) * self.in_chans > room:
            return None
        try:
            return FullImage(jpeg.decode(jpeg.header.rows, DCT_SCALE), jpeg.turn)
        except Exception:  # as in ``__call__``
            file.seek(0)
            return self._whole(file, name)

    def _as_jpeg(self, file: IO[bytes], name: str | Path) -> JpegImage | None:
        """The file as a JPEG of a common kind; else None, with the file rewound."""
        if self.in_chans not in (1, 3):
            return None
        try:
            data = bytearray(file.seek(0, os.SEEK_END) if file.read(3) == b"\xff\xd8\xff" else 0)
            file.seek(0)
            file.readinto(data)  # type: ignore[attr-defined]
            file.seek(0)
        except OSError as error:  # of a disk or a network
            raise ImageError(name, describe_failure(error)) from None
        if not data:
            return None
        header = read_header(data)
        if header is None or header.rows * header.columns > most_pixels("JPEG"):
            return None
        if header.progressive and data.count(b"\xff\xda") > MAX_SCANS:
            return None
        turn = UPRIGHT
        if header.has_metadata:
            try:
                with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("JPEG",)) as opened:
                    warnings.simplefilter("ignore")
                    turn = turn_of(opened)
            except Exception:  # as in ``__call__``
                return None
        return JpegImage(data, header, turn, self.in_chans, self.decoder)

    def _whole(self, file: IO[bytes], name: str | Path) -> FullImage:
        pixels = np.array(decode_image(file, name, self.in_chans))
        return FullImage(pixels.reshape(*pixels.shape[:2], self.in_chans), UPRIGHT)
