"""Examines every image of a data set; optionally writes a contact sheet and an HTML page."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mae.data.eval_loader import in_batches
from mae.data.loader import Batches, loader_of
from mae.data.sources.base import ImageSource
from mae.data.sources.scan import ImageScan, scan_images
from mae.inspection.config import InspectConfig
from mae.inspection.facts import DEEP, HASH_BYTES, Facts, FactsDataset, as_list
from mae.inspection.page import page
from mae.inspection.sheet import Tile, contact_sheet
from mae.io.files import refuse_input, refuse_place, write_output
from mae.io.notebook import Drawn, Table
from mae.io.text import unfolded
from mae.io.urls import public_name
from mae.system.environment import usable_cores

MOST_GROUPS = 100  # of equal files that are named
MOST_NAMES = 10  # of one group
MOST_UNREADABLE = 1000  # that are named
MOST_SIZES = 10
USUAL_SIDE = 224  # pixels of a training crop
FEW_LEVELS = 64  # of 256
_AT_ONCE = 64  # images handed from one process to another


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Images whose files are the same.

    Attributes:
        files: Number of files.
        names: Names of the first ones.
    """

    files: int
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Statistics of the sizes of the stored images, in pixels.

    Attributes:
        short_side, long_side: Minimum, median and maximum of the shorter and the longer side.
        below_usual: Number of images whose shorter side is below 224 pixels.
        widest: Largest ratio of the longer to the shorter side.
        most_common: (width, height, number of images) of the most frequent sizes.
    """

    short_side: tuple[int, int, int]
    long_side: tuple[int, int, int]
    below_usual: int
    widest: float
    most_common: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class InspectResult(Drawn):
    """Result of ``inspect``.

    Attributes:
        data: The examined folders, archives and files.
        images: Number of readable images.
        unreadable_files: Number of files that are named like images but cannot be read.
        unreadable: (name, reason) of the first unreadable files.
        others: Number of files that are not images.
        size_bytes: Total size of the images' files.
        formats, channels: Number of images by format and by channels, the most frequent first.
        sizes: Statistics of the sizes; None if there is no readable image.
        duplicates: Number of images that equal an earlier one byte for byte; None if not requested.
        duplicate_groups: The largest groups of equal files.
        decoded: Number of images that were decoded in full.
        mean, std: Mean and std of each RGB channel over the decoded images, for pixels from 0 to 1.
        deep_levels: Number of the 256 grey levels that the decoded images of 16 and 32 bits reach after scaling to 8
            bits; None if there are no such images.
        seconds: Duration in seconds.
        sheet, report: The written contact sheet and page; None if not requested.
        notes: Messages for the user.
    """

    data: tuple[str, ...]
    images: int
    unreadable_files: int
    unreadable: tuple[tuple[str, str], ...]
    others: int
    size_bytes: int
    formats: dict[str, int]
    channels: dict[str, int]
    sizes: Sizes | None
    duplicates: int | None
    duplicate_groups: tuple[DuplicateGroup, ...]
    decoded: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    seconds: float
    deep_levels: int | None = None
    sheet: Path | None = None
    report: Path | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """The rows of the table: title and value."""
        rows = [
            ("images", f"{self.images:,}, {_bytes(self.size_bytes)}"),
            ("unreadable", f"{self.unreadable_files:,}"),
            ("other files", f"{self.others:,}"),
            ("formats", _counts(self.formats, self.images)),
            ("channels", _counts(self.channels, self.images)),
        ]
        if self.sizes is not None:
            rows += [
                ("shorter side", "{:,} to {:,} pixels, median {:,}".format(*_low_high_middle(self.sizes.short_side))),
                ("longer side", "{:,} to {:,} pixels, median {:,}".format(*_low_high_middle(self.sizes.long_side))),
                (f"shorter side below {USUAL_SIDE}", _share(self.sizes.below_usual, self.images)),
                ("longer : shorter side", f"at most {self.sizes.widest:.2f}"),
            ]
        if self.duplicates is not None:
            rows.append(("duplicates", f"{_share(self.duplicates, self.images)}, byte for byte"))
        if self.mean is not None and self.std is not None:
            figures = (" ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
            rows.append(("mean, std (R G B)", ", ".join(figures)))
        if self.deep_levels is not None:
            little = "; apply a window and save 8-bit images" if self.deep_levels <= FEW_LEVELS else ""
            rows.append(("16 bits scaled to 8", f"{self.deep_levels} of 256 grey levels used{little}"))
        rows.append(("decoded in full", _share(self.decoded, self.images)))
        return rows

    def _table(self) -> Table:
        return Table(f"inspection of {' '.join(self.data)}", self.rows())


def inspect(config: InspectConfig, on_progress: Callable[[int, int], None] = lambda done, total: None) -> InspectResult:
    """Examine every image of a data set: formats, channels, sizes, duplicates and unreadable files.

    Every file is opened; ``config.decode`` images, spaced evenly over the data, are decoded in full. Memory grows by
    24 bytes per image and its name only.

    Args:
        config: All settings.
        on_progress: Called with the number of examined images and their total; during the scan with the number of files
            and 0.

    Raises:
        DataError: The data holds no image.
        ConfigError: The contact sheet or the page cannot be written.
    """
    begun = time.monotonic()
    written = [(flag, path) for flag, path in (("--sheet", config.sheet), ("--report", config.report)) if path]
    for flag, path in written:
        refuse_place(path, flag)
        refuse_input(path, flag, {"one of the data": config.data}, folders=config.data)
    scan = scan_images(config.data, lambda files: on_progress(files, 0), offline=config.offline)
    for flag, path in written:
        refuse_input(path, flag, {"one of the data": scan.looked_into}, folders=scan.looked_into)
    shown_images = _evenly(len(scan.images), config.drawn)
    decode = frozenset([*_evenly(len(scan.images), config.decode), *shown_images])
    dataset = FactsDataset(scan.images, duplicates=config.duplicates, decode=decode, thumbnails=frozenset(shown_images))
    tally = _Tally(scan, frozenset(shown_images), len(decode))
    for facts in _looked_at(dataset, config.workers):
        tally.add(facts)
        on_progress(tally.seen, len(scan.images))
    result = tally.result(config, time.monotonic() - begun)
    if config.sheet is not None:
        write_output(config.sheet, contact_sheet(tally.tiles, config.sheet.suffix.lower()), "--sheet")
    if config.report is not None:
        write_output(config.report, page(result, tally.tiles, time.time()).encode(), "--report")
    return result


def _looked_at(dataset: FactsDataset, workers: int | None) -> Iterator[list[Facts]]:
    if workers is None:
        workers = int(usable_cores() or 1) if len(dataset) > 4 * _AT_ONCE else 0
    chunks, generator = in_batches(range(len(dataset)), _AT_ONCE), torch.Generator().manual_seed(0)
    loader = loader_of(dataset, chunks, as_list, generator, workers=workers, pin_memory=False)
    batches: Iterator[Any] = Batches(loader)
    return batches


class _Tally:
    """Accumulates the statistics of the examined images.

    Args:
        scan: Result of the scan.
        shown_images: Numbers of the images whose thumbnails are kept.
        decoded: Number of images that are decoded.
    """

    def __init__(self, scan: ImageScan, shown_images: frozenset[int], decoded: int) -> None:
        self.source: ImageSource = scan.images
        self.others = scan.others
        self.unreadable = [(unfolded(one.path), one.reason) for one in scan.unreadable[:MOST_UNREADABLE]]
        self.unreadable_files = len(scan.unreadable)
        self.shown_images = shown_images
        images = len(scan.images)
        self.digests = np.zeros((images, HASH_BYTES // 8), np.uint64)
        self.sizes = np.zeros((images, 2), np.int32)
        self.formats: Counter[str] = Counter()
        self.channels: Counter[str] = Counter()
        self.size_bytes = self.seen = self.decoded = 0
        self.sums = np.zeros((2, 3))
        self.deep_levels: int | None = None
        self.tiles: list[Tile] = []

    def add(self, facts: Iterable[Facts]) -> None:
        """Add more images."""
        for one in facts:
            self.seen += 1
            if one.digest:
                self.digests[one.number] = np.frombuffer(one.digest, np.uint64)
            if one.reason:
                self.unreadable_files += 1
                if len(self.unreadable) < MOST_UNREADABLE:
                    self.unreadable.append((unfolded(self.source.name(one.number)), one.reason))
                continue
            self.size_bytes += one.size_bytes
            self.formats[one.format] += 1
            self.channels[one.channels] += 1
            self.sizes[one.number] = one.width, one.height
            if one.decoded is not None:
                self.decoded += 1
                self.sums += one.decoded.mean, one.decoded.square
                if one.channels in DEEP:
                    self.deep_levels = max(self.deep_levels or 0, one.decoded.brightest + 1)
                if one.number in self.shown_images:
                    name = unfolded(self.source.name(one.number))
                    self.tiles.append(Tile(name, one.width, one.height, one.decoded.thumbnail))

    def result(self, config: InspectConfig, seconds: float) -> InspectResult:
        """The result, from all images that were added."""
        good = self.sizes[:, 0] > 0
        duplicates, groups = self._duplicates(good) if config.duplicates else (None, ())
        mean, square = self.sums / max(1, self.decoded)
        return InspectResult(
            data=tuple(public_name(path) for path in config.data),
            images=int(good.sum()),
            unreadable_files=self.unreadable_files,
            unreadable=tuple(self.unreadable),
            others=self.others,
            size_bytes=self.size_bytes,
            formats=dict(self.formats.most_common()),
            channels=dict(self.channels.most_common()),
            sizes=_sizes(self.sizes[good]) if good.any() else None,
            duplicates=duplicates,
            duplicate_groups=groups,
            decoded=self.decoded,
            mean=tuple(mean.tolist()) if self.decoded else None,
            std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).tolist()) if self.decoded else None,
            seconds=seconds,
            deep_levels=self.deep_levels,
            sheet=config.sheet,
            report=config.report,
            notes=tuple(self.source.warnings),
        )

    def _duplicates(self, good: NDArray[np.bool_]) -> tuple[int, tuple[DuplicateGroup, ...]]:
        """The number of duplicates and the largest groups, found by sorting the hashes."""
        numbers = np.flatnonzero(good)
        if not len(numbers):
            return 0, ()
        keys = self.digests[numbers]
        order = np.lexsort((numbers, *keys.T))
        numbers, keys = numbers[order], keys[order]
        begins = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        counts = np.diff(np.r_[begins, len(numbers)])
        largest = [group for group in np.argsort(-counts, kind="stable")[:MOST_GROUPS] if counts[group] > 1]
        groups = tuple(
            DuplicateGroup(int(counts[group]), self._names(numbers[begins[group] :][: counts[group]]))
            for group in largest
        )
        return int((counts - 1).sum()), groups

    def _names(self, numbers: NDArray[np.intp]) -> tuple[str, ...]:
        return tuple(unfolded(self.source.name(int(number))) for number in numbers[:MOST_NAMES])


def _sizes(sizes: NDArray[np.int32]) -> Sizes:
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    pairs, counts = np.unique(sizes, axis=0, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:MOST_SIZES]
    return Sizes(
        short_side=(int(short.min()), int(np.median(short)), int(short.max())),
        long_side=(int(long.min()), int(np.median(long)), int(long.max())),
        below_usual=int((short < USUAL_SIDE).sum()),
        widest=float((long / short).max()),
        most_common=tuple((int(pairs[at][0]), int(pairs[at][1]), int(counts[at])) for at in common),
    )


def _evenly(images: int, count: int) -> list[int]:
    """At most ``count`` image numbers, evenly spaced."""
    return sorted({number * images // count for number in range(count)}) if count < images else list(range(images))


def _low_high_middle(values: tuple[int, int, int]) -> tuple[int, int, int]:
    return values[0], values[2], values[1]


def _counts(counts: dict[str, int], images: int) -> str:
    return ", ".join(f"{name} {_share(count, images)}" for name, count in counts.items()) or "-"


def _share(count: int, images: int) -> str:
    if not count or count == images:
        return f"{count:,}" if count != 1 or images != 1 else "1"
    return f"{count:,} ({count / images:.1%})"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
