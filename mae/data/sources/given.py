"""The images to reconstruct: single images, and the first ones of each folder or archive."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image

from mae.data.decoding.formats import MAX_FILE_BYTES, ImageError, describe_failure
from mae.data.decoding.in_memory import to_image
from mae.data.sources.base import ImageSource
from mae.data.sources.paths import ImagePaths
from mae.data.sources.scan import expand_braces, holds_many, is_image_url, scan_images
from mae.errors import ConfigError
from mae.io.text import shown
from mae.io.urls import public_name
from mae.options import STANDARD_STREAM

TRIES = 10  # files of a folder that are tried for each wanted image


class Given(NamedTuple):
    """A decoded image.

    Attributes:
        path: Name of the image for the user.
        image: The image, as returned by ``decode_image``.
    """

    path: Path
    image: Image.Image


class GivenImages:
    """The images of given paths; they are listed at once and decoded one by one.

    Args:
        paths: Images, and folders, archives and tables of images, in any order; also URLs; ``-`` is standard
            input. Images in memory that ``to_image`` accepts are also allowed.
        limit: Largest number of images of each folder, archive or table. A name with braces counts as one.

    Attributes:
        skipped: (path, reason) of unreadable files; grows during decoding.
        notes: Messages for the user; grows during decoding.
        files, folders: The files that are read, and the folders whose files may be read.

    Raises:
        DataError: A folder, archive or table is missing or holds no image.
        ConfigError: Standard input cannot be read here.
    """

    def __init__(self, paths: Sequence[Path | Any], limit: int) -> None:
        self.skipped: list[tuple[Path, str]] = []
        self.notes: list[str] = []
        self.files: list[Path] = []
        self.folders: list[Path] = []
        self._groups: list[
            tuple[ImageSource, int, bool]
        ] = []  # source, number of wanted images, whether a single image
        if [path for path in paths if isinstance(path, Path)].count(STANDARD_STREAM) > 1:
            raise ConfigError("IMAGE - twice: standard input can be read once")
        for number, path in enumerate(paths, start=1):
            if isinstance(path, Path):
                self._add(path, limit)
            else:
                self._groups.append((_InMemory(path, number), 1, True))

    def __len__(self) -> int:
        return sum(wanted for _, wanted, _ in self._groups)

    def _add(self, path: Path, limit: int) -> None:
        if path == STANDARD_STREAM:
            self._groups.append((_StandardInput(), 1, True))
            return
        if is_image_url(path):
            images = scan_images([path]).images
            self._groups.append((images, len(images), True))
            return
        places = [path] if holds_many(path) else expand_braces(path)
        many = [place for place in places if holds_many(place)]
        if many:
            scan = scan_images(many)
            found = len(scan.images)
            for place in scan.looked_into:
                (self.folders if place.is_dir() else self.files).append(place)
            self.skipped += [(bad.path, bad.reason) for bad in scan.unreadable]
            self._groups.append((scan.images, min(limit, found), False))
            if found > limit:
                where = shown(public_name(path))
                self.notes.append(f"{where}: {limit:,} of {found:,} images; --limit {found} shows all")
        for place in places:
            if place not in many:
                folder, name = os.path.split(os.fsencode(place))
                self._groups.append((ImagePaths([(folder, name + b"\0")]), 1, True))
                self.files.append(place)

    def decode(self, in_chans: int) -> Iterator[Given]:
        """Decode the images in order. In folders, archives and tables, unreadable images are replaced by the next ones.

        Raises:
            DataError: A single image that was given by its path cannot be read.
        """
        for source, wanted, named in self._groups:
            done = 0
            for index in range(min(len(source), TRIES * wanted)):
                if done == wanted:
                    break
                try:
                    image = source.load(index, in_chans, self.notes.append)
                except ImageError as error:
                    if named:
                        raise
                    self.skipped.append((source.name(index), error.reason))
                    continue
                done += 1
                yield Given(source.name(index), image)


class _StandardInput(ImageSource):
    """The image on standard input."""

    NAME = Path("stdin")

    def __init__(self) -> None:
        if sys.stdin is None or sys.stdin.isatty():
            raise ConfigError(
                "IMAGE - reads standard input, but nothing is piped into it",
                hint="for instance: maecli reconstruct - < cat.jpg",
            )

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> Path:
        """Name of the image in messages."""
        return self.NAME

    def open(self, index: int) -> IO[bytes]:
        """Read standard input in full, because a pipe is not seekable."""
        try:
            content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        except OSError as error:  # for instance if a folder is redirected to it
            raise ImageError(self.NAME, describe_failure(error)) from None
        if len(content) > MAX_FILE_BYTES:
            raise ImageError(self.NAME, f"is too large (at most {MAX_FILE_BYTES // 2**20} MiB are read)")
        return io.BytesIO(content)

    def digest(self) -> str:
        """Empty, because its name cannot change."""
        return ""


class _InMemory(ImageSource):
    """An image in memory, given by a caller of the library."""

    def __init__(self, image: Any, number: int) -> None:
        self._image = image
        self._name = Path(Path(os.fsdecode(getattr(image, "filename", ""))).name or f"image {number}")

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> Path:
        """Name of the file that Pillow opened, or "image" and its number among the arguments."""
        return self._name

    def open(self, index: int) -> IO[bytes]:
        """Raise an error, because there is no file."""
        raise ImageError(self._name, "is an image in memory, not a file")

    def load(self, index: int, in_chans: int, on_note: Callable[[str], None] | None = None) -> Image.Image:
        """Convert the image with ``to_image``."""
        return to_image(self._image, in_chans, self._name)

    def digest(self) -> str:
        """Empty, because its name cannot change."""
        return ""
