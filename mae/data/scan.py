"""Find the pictures below some folders."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from mae.data.picture import describe_failure
from mae.errors import DataError


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A file that should be a picture and is none."""

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True)
class PictureScan:
    """What was found.

    Attributes:
        pictures: Files that Pillow knows by their content, sorted.
        unreadable: Files that are named like a picture and are none that Pillow knows.
        others: How many files are neither (texts, tables ...).
    """

    pictures: tuple[Path, ...]
    unreadable: tuple[Unreadable, ...]
    others: int


def scan_pictures(sources: Sequence[Path], on_progress: Callable[[int], None] | None = None) -> PictureScan:
    """Look through folders (and single files) for pictures, by content rather than by suffix.

    Folders may be nested or flat, with class folders or without; links are followed, hidden files are not.
    Only a file's head is read here: one that breaks off later is found when it is decoded.

    Args:
        sources: Folders or files.
        on_progress: Called with the number of files seen so far, now and then.

    Raises:
        DataError: A source does not exist, or there is no picture in any of them.
    """
    suffixes = set(Image.registered_extensions())
    pictures: dict[Path, None] = {}
    unreadable: list[Unreadable] = []
    others = 0
    for source in sources:
        if not source.exists():
            raise DataError(f"{source}: no such folder", hint="give a folder with pictures, or several")
        for seen, path in enumerate(_files(source)):
            if on_progress is not None and seen % 256 == 255:
                on_progress(seen + 1)
            failure = _probe(path)
            if failure is None:
                pictures[path] = None
            elif path.suffix.lower() in suffixes:
                unreadable.append(Unreadable(path, failure))
            else:
                others += 1
    if not pictures:
        where = ", ".join(str(source) for source in sources)
        found = f"{len(unreadable)} unreadable and {others} other files" if unreadable or others else "it is empty"
        raise DataError(f"no picture in {where}: {found}", hint=unreadable[0].reason if unreadable else None)
    return PictureScan(tuple(pictures), tuple(unreadable), others)


def _files(source: Path) -> Iterator[Path]:
    """All files below a folder in sorted order; each real folder once, so that circular links end."""
    if source.is_file():
        yield source
        return
    visited: set[Path] = set()
    for folder, subfolders, names in os.walk(source, followlinks=True):
        real = Path(folder).resolve()
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name)


def _probe(path: Path) -> str | None:
    """None for a picture, else why it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return None
    except Exception as error:  # a damaged file can raise almost anything from inside a decoder
        return describe_failure(path, error)
