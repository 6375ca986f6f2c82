"""Files: writing them so that a crash leaves the old one or the new one, and showing any name on one line."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO

from mae.errors import ConfigError
from mae.io.text import shown


def refuse_place(path: Path, label: str, *, folder: bool = False) -> None:
    """Refuse a place that cannot be written to, before anything is computed for it.

    Args:
        path: Where a file is to be written, or files into a folder.
        label: The option that named it, for instance ``--out``.
        folder: Whether the place is a folder, which need not be there yet.

    Raises:
        ConfigError: There is no folder for it, it may not be written to, or something else is there.
    """
    name = f"{label} {shown(path)}"
    try:
        target = path.resolve() if path.is_symlink() else path
        kind = target.stat().st_mode if target.exists() else None
        above = target.parent
        while folder and not above.exists() and above != above.parent:
            above = above.parent
        has_folder = above.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a link to itself, a zero byte
        raise ConfigError(f"{name}: {getattr(error, 'strerror', None) or error}") from None
    if target.is_symlink():  # from Python 3.13 on
        raise ConfigError(f"{name} is a link that leads back to itself")
    if folder and kind is not None and not stat.S_ISDIR(kind):
        raise ConfigError(f"{name} is a file; a folder is wanted", hint="give another name, or move the file away")
    if not folder and kind is not None and stat.S_ISDIR(kind):
        raise ConfigError(f"{name} is a folder; a file is wanted", hint="give the name of a file in it")
    if not folder and kind is not None and not stat.S_ISREG(kind):
        raise ConfigError(f"{name} is a device, a pipe or a socket; a file is wanted")
    if not has_folder:
        raise ConfigError(
            f"{name}: {shown(above)} is a file, not a folder"
            if above.exists()
            else f"{name}: there is no folder {shown(above)}"
        )
    inside = target if folder and kind is not None else above
    if not os.access(inside, os.W_OK | os.X_OK):
        raise ConfigError(f"{name}: no permission to write in {shown(inside)}")


def refuse_input(path: Path, label: str, inputs: Mapping[str, Iterable[Path]], *, folders: Iterable[Path] = ()) -> None:
    """Refuse a file that the same command reads, by whatever name it goes, before it is written over.

    Files are compared by identity, not by path: links, relative names, another case where
    the file system ignores it, and hard links all lead to the same one.

    Args:
        path: The file that is to be written; one that is not there yet cannot be lost.
        label: The option that named it, for instance ``--out``.
        inputs: Files that are read, by what they are called.
        folders: Of these any file may be read; those in their subfolders are not meant.

    Raises:
        ConfigError: It is one of them.
    """
    written = _stat(path)
    if written is None:
        return
    hint = f"give {label} another name or another folder"
    for what, places in inputs.items():
        if any(_is(place, written) for place in places):
            raise ConfigError(f"{label} {shown(path)} is {what} itself; it would be overwritten", hint=hint)
    above = path.resolve().parent.stat()
    for folder in folders:
        if _is(folder, above):
            raise ConfigError(
                f"{label} {shown(path)} lies in {shown(folder)}, whose files are read; it would be overwritten",
                hint=hint,
            )


def refuse_inside(path: Path, label: str, folders: Iterable[Path]) -> None:
    """Refuse a folder for results that is one of the folders that are read, or lies in one.

    Args:
        path: The folder that is to be written to; it need not be there yet.
        label: The option that named it.
        folders: What is read; files among it do not count.

    Raises:
        ConfigError: It is such a one.
    """
    above = [path.resolve(), *path.resolve().parents]
    for folder in folders:
        if folder.is_dir() and folder.resolve() in above:
            what = "is" if folder.resolve() == above[0] else "lies in"
            raise ConfigError(
                f"{label} {shown(path)} {what} {shown(folder)}, whose images are read: what is written there would be "
                "taken for data",
                hint=f"give {label} a folder elsewhere",
            )


def _is(place: Path, info: os.stat_result) -> bool:
    found = _stat(place)
    return found is not None and os.path.samestat(found, info)


def _stat(path: Path) -> os.stat_result | None:
    """Of the file behind links; None for one that is not there or cannot be asked."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its target, flush it to the disk, and move it into place.

    Args:
        path: The target; its folder must exist. A link is followed, so that it stays one.
        write: Called with the open binary file.

    Raises:
        OSError: The file cannot be written; the target is as it was.
    """
    target = resolve_target(path)
    # Not NamedTemporaryFile: its 0600 would survive the move and lock a lab's colleagues out.
    temporary = temporary_beside(target)
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def resolve_target(path: Path) -> Path:
    """Where a file of this name is written: behind links, and never in a device's or a pipe's place.

    Raises:
        OSError: It is not a regular file, or links lead in a circle.
    """
    try:
        target = path.resolve()
    except RuntimeError:  # what Python before 3.13 says of a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target.exists() and not target.is_file() and not target.is_dir():
        raise OSError(errno.EINVAL, "it is a device, a pipe or a socket", str(path))
    return target


def temporary_beside(target: Path) -> Path:
    """A fresh name in a target's folder; it is not longer than the target's own may be."""
    return target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}.tmp")
