"""Which files are images: the supported formats, their first bytes, and opening them safely."""

from __future__ import annotations

import enum
import errno
import functools
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from PIL import Image, UnidentifiedImageError

from mae.errors import DataError
from mae.io.text import shown

# Formats that Pillow decodes by itself. Excluded: EPS (a program, run by Ghostscript), WMF (drawn by Windows),
# and names for which Pillow has no decoder of its own (BUFR, GRIB, HDF5, MPEG).
FORMATS = (
    "JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI", "PSD", "DIB", "SGI",
    "PCX", "DCX", "DDS", "ICNS", "CUR", "FITS", "FLI", "FTEX", "BLP", "GBR", "IM", "IMT", "MCIDAS", "MSP", "PCD",
    "PIXAR", "SPIDER", "SUN", "XBM", "XPM", "XVTHUMB",
)  # fmt: skip
# Formats whose first bytes identify them reliably.
_SURE = frozenset(("JPEG", "PNG", "WEBP", "TIFF", "GIF", "AVIF", "JPEG2000", "QOI", "PSD"))
MAX_FILE_BYTES = 512 * 2**20
# Peak memory of decoding and turning upright in bytes per pixel, measured with Pillow 13.
BYTES_PER_PIXEL = {"JPEG2000": 20, "WEBP": 20, "AVIF": 16}
OTHER_BYTES_PER_PIXEL = 12
MAX_DECODED_BYTES = 1_400_000_000
# Reads per file; the largest allowed PNG, in its usual pieces of 8 KiB, takes two thirds of them.
MAX_READS = 300_000
# A progressive JPEG has about ten scans; a thousand empty ones would keep a decoder busy for minutes.
MAX_SCANS = 100
HEAD_BYTES = 64

_NO_DATA = "is empty (0 bytes)"
_UNKNOWN = "is not an image format that Pillow reads"
_FOREIGN_HEADS = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the image (git lfs pull fetches it)"),
    (b"<!doctype", "is a web page saved under an image's name"),
    (b"<html", "is a web page saved under an image's name"),
    (b"<svg", "is SVG, a drawing; export it as PNG"),
    (b"%!ps", "is PostScript, a program; convert it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "is PostScript, a program; convert it to PNG"),
    (b"%pdf", "is a PDF document; export its pages as PNG"),
)
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO, not a file"),
    (stat.S_ISSOCK, "is a socket, not a file"),
    (stat.S_ISCHR, "is a device, not a file"),
    (stat.S_ISBLK, "is a device, not a file"),
)


class ImageError(DataError):
    """An image cannot be used; ``reason`` says why, without the image's name."""

    def __init__(self, name: str | Path, reason: str) -> None:
        super().__init__(f"{shown(name)}: {reason}")
        self.name = name
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason)  # so that a loader process can send it


def open_regular(path: Path, *, limited: bool = True) -> IO[bytes]:
    """Open a file for reading; a FIFO, a socket, a device or a folder is refused before it is opened.

    Raises:
        OSError: The file cannot be opened; ``describe_failure`` gives the reason as text.
        DataError: It is not a regular file, or ``limited`` and over 512 MiB.
    """
    _check_regular(path, path.stat(), limited)
    # O_NONBLOCK: opening does not hang if the file has been replaced by a FIFO since the check.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(descriptor), limited)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(name: Path, info: os.stat_result, limited: bool) -> None:
    if not stat.S_ISREG(info.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(info.st_mode)), "is not a regular file")
        raise ImageError(name, kind)
    if limited and (reason := too_large(info.st_size)):
        raise ImageError(name, reason)


def too_large(size: int) -> str | None:
    """Why a file of ``size`` bytes is not read, or None."""
    return f"is too large ({size / 2**20:,.0f} MiB; at most 512 are read)" if size > MAX_FILE_BYTES else None


def metered(file: IO[bytes], name: str | Path) -> IO[bytes]:
    """An open file that raises an error if it is read in hundreds of thousands of pieces."""
    return cast(IO[bytes], _Metered(file, name))


class _Metered:
    """An open file that counts its reads, see ``metered``.

    Decoders written in Python walk through a file piece by piece; 512 MiB of pieces without content would keep
    one busy for minutes.
    """

    def __init__(self, file: IO[bytes], name: str | Path) -> None:
        self._file = file
        self._name = name
        self._left = MAX_READS

    def read(self, size: int = -1) -> bytes:
        """Read from the file, and count the call."""
        self._count()
        return self._file.read(size)

    def readline(self, size: int = -1) -> bytes:
        """Read from the file, and count the call."""
        self._count()
        return self._file.readline(size)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ImageError(self._name, f"is made of over {MAX_READS:,} pieces")

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._file, attribute)


class FileKind(enum.Enum):
    """Result of recognising a file."""

    IMAGE = enum.auto()
    UNREADABLE = enum.auto()  # its name is that of an image, but it cannot be read as one
    OTHER = enum.auto()
    UNDECIDED = enum.auto()  # can only be decided by opening it with Pillow


class Verdict(NamedTuple):
    """The kind of a file, and for an unreadable one the reason."""

    kind: FileKind
    reason: str = ""


def kind_of_head(head: bytes) -> FileKind:
    """The kind of a file by its first bytes: an image, another file, or undecided."""
    for is_sure, accept in _accepts():
        try:
            if accept(head[:16]) is True:
                return FileKind.IMAGE if is_sure else FileKind.UNDECIDED
        except (IndexError, struct.error):  # too short for this format's marker
            continue
    return FileKind.OTHER


def judge(name: bytes, by_head: FileKind, probe: Callable[[], str | None]) -> Verdict:
    """The kind of a file; it is opened only if its first bytes do not decide, or contradict its name.

    Args:
        name: Name of the file; by its suffix a file that is not an image counts as unreadable or as another file.
        by_head: Result of ``kind_of_head``.
        probe: Opens the file and returns why it is not an image, or None if it is one.
    """
    named = os.path.splitext(name)[1].lower().decode("latin-1") in image_suffixes()
    if by_head is FileKind.IMAGE:
        return Verdict(FileKind.IMAGE)
    if by_head is FileKind.OTHER and not named:
        return Verdict(FileKind.OTHER)
    failure = probe()
    if failure is None:
        return Verdict(FileKind.IMAGE)
    return Verdict(FileKind.UNREADABLE, failure) if named else Verdict(FileKind.OTHER)


@functools.cache
def _accepts() -> tuple[tuple[bool, Callable[[bytes], object]], ...]:
    Image.init()
    known = [(name, Image.OPEN[name][1]) for name in FORMATS if name in Image.OPEN]
    return tuple((name in _SURE, accept) for name, accept in known if accept is not None)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes, lower case with their dot, of the formats that are read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def check_size(name: str | Path, image: Image.Image) -> None:
    """Refuse an image whose decoding would take more than about 1.4 GB.

    Raises:
        DataError: It has too many pixels.
    """
    kind = image.format or ""
    if image.width * image.height > most_pixels(kind):
        size = f"{image.width:,} x {image.height:,} pixels"
        raise ImageError(name, f"is too large ({size}; {kind} is read up to {most_pixels(kind) / 1e6:.0f} million)")


def most_pixels(kind: str) -> int:
    """Largest number of pixels that is decoded, by format."""
    return MAX_DECODED_BYTES // BYTES_PER_PIXEL.get(kind, OTHER_BYTES_PER_PIXEL)


def check_scans(name: str | Path, file: IO[bytes]) -> None:
    """Refuse a progressive JPEG with more than ``MAX_SCANS`` scans, which is made to keep a decoder busy.

    Raises:
        DataError: It has over a hundred.
    """
    place = file.tell()
    file.seek(0)
    scans = file.read().count(b"\xff\xda")
    file.seek(place)
    if scans > MAX_SCANS:
        raise ImageError(name, f"is a JPEG of {scans:,} scans; at most {MAX_SCANS} are read")


def describe_failure(error: BaseException, head: bytes = b"\0", path: Path | None = None) -> str:
    """The reason why an image could not be read, for the user.

    Args:
        error: The exception of opening or decoding.
        head: First bytes of the file, if it could be opened.
        path: Path of the file, if it is not in an archive or in memory.
    """
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, DataError):
        return error.message
    if isinstance(error, FileNotFoundError):
        return "is a link to nothing" if path is not None and path.is_symlink() else "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "is a link that leads back to itself"
    if isinstance(error, OSError) and error.errno is not None:
        return (os.strerror(error.errno)).lower()
    if not head:
        return _NO_DATA
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for foreign, words in _FOREIGN_HEADS:
        if start.startswith(foreign):
            return words
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return "is HEIC, which Pillow does not read; export it as JPEG"
    if isinstance(error, UnidentifiedImageError):
        return _UNKNOWN
    if isinstance(error, Image.DecompressionBombError):
        return "is too large (over 178 million pixels)"
    if "MAX_TEXT" in str(error) or "Decompressed data too large" in str(error):
        return "is damaged or an attack: its text or its profile unpacks to more than a megabyte"
    return f"cannot be decoded ({shown(' '.join(str(error).split())) or type(error).__name__})"
