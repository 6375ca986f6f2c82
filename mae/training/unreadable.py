"""Unreadable images: each is reported once, and too many of them end the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mae.data.sources.scan import Unreadable
from mae.errors import DataError
from mae.io.text import shown
from mae.training.events import ImageUnreadable
from mae.training.run import Run
from mae.training.unreadable_table import UnreadableTable

NAMES_IN_AN_ERROR = 3


class UnreadableFiles:
    """The unreadable files of a run, as reported by all its processes.

    Args:
        run: The run.
        known: Files that the scan has already reported.
    """

    def __init__(self, run: Run, known: Iterable[Unreadable]) -> None:
        self.run = run
        self.known = {bad.path for bad in known}
        self.found = run.plan.images + len(self.known)
        self._to_share: list[Unreadable] = []

    def note(self, files: Iterable[Unreadable]) -> None:
        """Report the files that were not reported before.

        Raises:
            DataError: More files are unreadable than ``--max-unreadable`` allows.
        """
        new = list({bad.path: bad for bad in files if bad.path not in self.known}.values())
        if not new:
            return
        for bad in new:
            self.known.add(bad.path)
            self.run.on_event(ImageUnreadable(bad.path, bad.reason))
        if not self.run.ranks.alone:
            self._to_share += new
        self.run.folder.unreadable.add(new)
        check_unreadable(len(self.known), self.found, self.run.config.max_unreadable, self.run.folder.unreadable)

    def share(self) -> None:
        """Exchange the unreadable files between the processes, so that one report lists all of them."""
        if self.run.ranks.alone:
            return
        found = [bad for part in self.run.ranks.gather(self._to_share) for bad in part]
        self._to_share = []
        self.note(found)
        self._to_share = []

    def require_image(self, tried: Sequence[Unreadable]) -> None:
        """Check that an unreadable image could be replaced by another.

        Raises:
            DataError: None of the files that were ``tried`` can be read.
        """
        if not tried:
            return
        named = "; ".join(f"{shown(bad.path)}: {bad.reason}" for bad in tried[:NAMES_IN_AN_ERROR])
        more = "; ..." if len(tried) > NAMES_IN_AN_ERROR else ""
        raise DataError(
            f"none of {len(tried)} images in a row can be read: {named}{more}",
            hint=f"check that their disk is still mounted; all names and reasons are in "
            f"{self.run.folder.unreadable.path}",
        )


def check_unreadable(bad: int, images: int, allowed: float, table: UnreadableTable) -> None:
    """Stop the run if too many images are unreadable.

    Raises:
        DataError: More than the allowed fraction is unreadable.
    """
    if bad > allowed * images:
        raise DataError(
            f"{bad} of {images} images are unreadable, more than --max-unreadable {allowed:g}",
            hint=f"their names and the reasons are in {table.path}",
        )
