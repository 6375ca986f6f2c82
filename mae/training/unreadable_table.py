"""The list of a run's unreadable images with reasons, ``unreadable.tsv``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from mae.data.sources.scan import Unreadable
from mae.errors import TrainingError
from mae.io.text import shown
from mae.training.failures import write_in_run

UNREADABLE_FILE = "unreadable.tsv"
_HEAD = "file\treason\n"


class UnreadableTable:
    """Each unreadable image of a run is in it once.

    Args:
        folder: The run's folder.
        resume: Whether the run is resumed.
        writes: Whether this process writes it; only one process of a run does.
    """

    def __init__(self, folder: Path, *, resume: bool, writes: bool) -> None:
        self.path = folder / UNREADABLE_FILE
        self.resume = resume
        self.writes = writes
        self._reported: set[str] = set()

    def start(self, files: Sequence[Unreadable]) -> None:
        """Write the images that the scan found; a resumed run keeps its lines."""
        if not self.writes:
            return
        lines = _whole_lines(self.path)[1:] if self.resume else []
        self._reported = {line.partition("\t")[0] for line in lines}
        lines += self._lines_of(files)
        if lines:
            write_in_run(self.path, lambda file: file.write("".join([_HEAD, *lines]).encode()))
        else:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def add(self, files: Sequence[Unreadable]) -> None:
        """Add images that are not in it yet.

        Lines are appended without flushing to disk: with a hundred thousand unreadable images, rewriting the file for
        each would take days.
        """
        if not self.writes or not (lines := self._lines_of(files)):
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines if file.tell() else [_HEAD, *lines]))
        except OSError as error:
            raise TrainingError(f"{self.path}: {error.strerror}") from None

    def _lines_of(self, files: Sequence[Unreadable]) -> list[str]:
        """The lines of the files that are not in it yet."""
        lines = []
        for bad in files:
            if (name := shown(bad.path)) not in self._reported:
                self._reported.add(name)
                lines.append(f"{name}\t{bad.reason}\n")
        return lines


def _whole_lines(path: Path) -> list[str]:
    """The complete lines of a text file; an empty list if it does not exist."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError:
        return []
    return lines if not lines or lines[-1].endswith("\n") else lines[:-1]
