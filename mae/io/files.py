"""Writes files atomically, and checks output paths before anything is computed."""

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
    """Check that a path can be written to, before anything is computed.

    Args:
        path: The file or folder to write.
        label: The option that named it, for instance ``--out``.
        folder: Whether ``path`` is a folder, which need not exist yet.

    Raises:
        ConfigError: The folder for it is missing or not writable, or ``path`` is something else.
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
    if target.is_symlink():  # Python 3.13 and later do not raise for a circle
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
    """Check that an output file is not one of the command's input files, under any name.

    Files are compared by identity (inode), not by path, so links, relative names, hard links, and names in another
    case on a case-insensitive file system are recognised.

    Args:
        path: The file to write; a file that does not exist cannot be an input.
        label: The option that named it, for instance ``--out``.
        inputs: Input files, by their description in messages.
        folders: Folders in which every file may be an input; subfolders are not included.

    Raises:
        ConfigError: ``path`` is an input.
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
    """Check that an output folder is not an input folder, nor inside one.

    Args:
        path: The folder to write to; it need not exist yet.
        label: The option that named it, for instance ``--out``.
        folders: Inputs; files among them are ignored.

    Raises:
        ConfigError: ``path`` is an input folder, or inside one.
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
    """``os.stat`` of a file, following links; None if it does not exist or is not accessible."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its target, flush it to the disk, and move it into place.

    Args:
        path: The target; its folder must exist. A link is kept, and the file that it points to is replaced.
        write: Called with the open binary file.

    Raises:
        OSError: The file cannot be written; the target is unchanged.
    """
    target = resolve_target(path)
    # Not NamedTemporaryFile, whose permissions 0600 would remain after the move, so that other users could not read it.
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


def write_output(path: Path, content: bytes, label: str) -> None:
    """Write the file that an option names atomically.

    Raises:
        ConfigError: It cannot be written; ``label`` begins the message: the option, or "cannot write".
    """
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise ConfigError(f"{label} {shown(path)}: {error.strerror or error}") from None


def resolve_target(path: Path) -> Path:
    """The file that is written for a path, with links followed.

    Raises:
        OSError: It is a device, a pipe or a socket, or the links form a circle.
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
    """A new temporary name in the target's folder, short enough for the file system."""
    return target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}.tmp")
