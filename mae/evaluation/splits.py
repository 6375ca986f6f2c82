"""Labels from class folders, and the split into training and test images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mae.data.sources.archive import ARCHIVE_SUFFIXES
from mae.data.sources.base import ImageSource
from mae.errors import DataError
from mae.evaluation.config import EvaluateConfig
from mae.io.text import a_few, shown
from mae.io.urls import public_name, url_of
from mae.system.seeding import stream

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VAL_NAMES = ("val", "valid", "validation")
PART_NAMES = (*TRAIN_NAMES, *TEST_NAMES, *VAL_NAMES)
LABELS_HINT = "labels are the names of folders: DATA/train/CLASS/image and DATA/test/CLASS/image, or DATA/CLASS/image"


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of the images of a source, from its folders.

    Attributes:
        classes: Names of the class folders, sorted.
        label: Index of each image's class in ``classes``, (N,) int64; -1 if it is in no class folder.
        part: Index of each image's part in ``parts``, (N,) int64; all -1 if there are no parts.
        parts: Names of the folders above the class folders, such as ("test", "train"); empty if there are none.
        lost: Class folders without a readable image, with their part's name: ("train/cat",).
        empty: The same for folders in which there is no image at all, and names of such parts: ("test", "train/cat").
        nested: Names of class folders that hold only folders.
    """

    classes: tuple[str, ...]
    label: NDArray[np.int64]
    part: NDArray[np.int64]
    parts: tuple[str, ...]
    lost: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Split:
    """Training and test images, as numbers in a source, and how they were chosen."""

    classes: tuple[str, ...]
    train: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    notes: tuple[str, ...]


def read_labels(
    source: ImageSource, roots: Sequence[Path], unreadable: Iterable[Path] = (), folders: Iterable[Path] = ()
) -> Labels:
    """Read labels from the folders that images are in, below ``roots`` (folders or archives).

    ``unreadable`` are files and folders that the scan could not read, and ``folders`` those that it looked into; with
    them, a class without any readable image is reported instead of being ignored.

    If there are both a ``train`` and a ``test`` or ``val`` folder, the classes are the folders in these. Else the
    classes are the uppermost folders that do not contain all images. Deeper folders are not examined.
    """
    roots = [Path(public_name(root)) for root in roots]
    names = [_inside(str(source.name(index)), roots) for index in range(len(source))]
    given = [root for root in roots if root.is_dir()]
    if len(given) > 1 and all(len(parts) == 1 for parts in names):  # the given folders are the class folders
        roots = [root.parent for root in given]
        names = [_inside(str(source.name(index)), roots) for index in range(len(source))]
    broken = [_inside(str(path), roots) + (("",) if path.is_dir() else ()) for path in unreadable]
    deep = [*names, *(parts for parts in broken if len(parts) > 2)]
    depth = _wrappers(deep)
    tops = {parts[depth] for parts in deep if len(parts) > depth + 1}
    has_parts = _one_of(tops, TRAIN_NAMES) is not None and _one_of(tops, (*TEST_NAMES, *VAL_NAMES)) is not None
    place = depth + has_parts
    found = [parts[place] if len(parts) > place + 1 else "" for parts in names]
    classes = tuple(sorted(set(found) - {""}))
    number = {name: index for index, name in enumerate(classes)}
    flat = {name for name, parts in zip(found, names, strict=True) if len(parts) == place + 2}
    there = {parts[depth : place + 1] for parts in names}
    lost = {parts[depth : place + 1] for parts in broken if len(parts) > place + 1} - there
    below = {_inside(str(path), roots) for path in folders if path.is_dir() and path not in roots}
    wrapper = next((parts[:depth] for parts in deep), ())
    empty = {parts[depth:] for parts in below if len(parts) == place + 1 and parts[:depth] == wrapper} - there - lost
    parents = {parts[:length] for parts in deep for length in range(1, len(parts))}
    bare = {parts[-1] for parts in below - parents if len(parts) <= place and parts[-1].lower() in PART_NAMES}
    part_names = tuple(sorted(tops)) if has_parts else ()
    part_number = {name: index for index, name in enumerate(part_names)}
    return Labels(
        classes,
        np.array([number.get(name, -1) for name in found], dtype=np.int64),
        np.array(
            [part_number.get(parts[depth], -1) if len(parts) > depth + 1 else -1 for parts in names], dtype=np.int64
        ),
        part_names,
        tuple(sorted(map("/".join, lost))),
        tuple(sorted({*map("/".join, empty), *bare})),
        tuple(name for name in classes if name not in flat),
    )


def _inside(name: str, roots: Sequence[Path]) -> tuple[str, ...]:
    """The folders and the file name of an image, relative to the root that holds it."""
    for root in roots:
        above = str(root).rstrip(os.sep) + os.sep
        if str(root) == ".":
            above = ""
        if name.startswith(above) and name != above:
            parts = name[len(above) :].split(os.sep)  # noqa: PTH206 - Path takes seconds for a million names
            return tuple(part for part in parts if part not in ("", "."))
    path = Path(name)  # in an archive that was given by a pattern: relative to the archive's file
    for parent in path.parents:
        if parent.is_file() or (parent.suffix.lower() in ARCHIVE_SUFFIXES and url_of(parent)):
            return path.relative_to(parent).parts
    return (path.name,)


def _wrappers(names: Sequence[tuple[str, ...]]) -> int:
    """Number of folders above the class folders that all images have in common."""
    depth = 0
    while names and all(len(parts) > depth + 2 for parts in names) and len({parts[depth] for parts in names}) == 1:
        depth += 1
    return depth


def _one_of(tops: Iterable[str], wanted: Sequence[str]) -> str | None:
    by_lower = {top.lower(): top for top in tops}
    return next((by_lower[name] for name in wanted if name in by_lower), None)


def make_split(
    source: ImageSource,
    labels: Labels,
    where: str,
    *,
    seed: int,
    test_share: float,
    default_share: float = EvaluateConfig.test_share,
) -> Split:
    """Use the split of the folders, or draw a stratified one by the seed.

    Args:
        source: The images, for their names in messages.
        labels: Labels from the folders.
        where: Name of the data for messages.
        seed, test_share: Seed of a drawn split, and fraction of each class that becomes test images.
        default_share: The fraction that nobody asked for; another one gets a note where it has no effect.

    Raises:
        DataError: There are fewer than two class folders, or the parts have different classes.
    """
    if not labels.classes:
        raise DataError(f"{where}: there are no class folders", hint=LABELS_HINT)
    if labels.parts:
        idle = f"{where} has its own test images, so --test-share {test_share:g} has no effect"
        notes = (idle,) if test_share != default_share else ()
        return _given(source, labels, where, notes)
    _refuse_lost(labels.lost, where)
    _refuse_half_a_split(labels, where)
    return _drawn(source, labels, where, seed, test_share)


def refuse_unreadable_classes(
    classes: Sequence[str], train_labels: NDArray[np.int64], test_labels: NDArray[np.int64], where: str
) -> None:
    """Check that every class has readable training and test images, given the labels of those that can be read.

    Raises:
        DataError: A class has none.
    """
    for part, labels in (("training", train_labels), ("test", test_labels)):
        counts = np.bincount(labels, minlength=len(classes))
        if not counts.all():
            name = shown(classes[int(counts.argmin())])
            raise DataError(
                f"{where}: no {part} image of {name} can be read", hint="repair the images, or remove the folder"
            )


def _refuse_lost(lost: Sequence[str], where: str) -> None:
    """Raise an error if a class has no readable image, instead of leaving the class out."""
    if lost:
        raise DataError(
            f"{where}: no image of {a_few(lost)} can be read", hint="repair the images, or remove the folder"
        )


def _left_out(empty: Sequence[str], where: str) -> tuple[str, ...]:
    return (f"{where}: no image in {a_few(empty)}; left out",) if empty else ()


def _refuse_half_a_split(labels: Labels, where: str) -> None:
    """Raise an error if there is a ``train`` or a ``test`` folder of classes without its counterpart."""
    part = _one_of(labels.nested, PART_NAMES)
    if part is not None:
        others = [name for name in labels.classes if name != part]
        wanted = "test/ or val/" if part.lower() in TRAIN_NAMES else "train/"
        beside = f"; next to it is {a_few(others)}" if others else ""
        raise DataError(
            f"{where}/{shown(part)} contains class folders, but there is no {wanted}{beside}",
            hint=f"rename the other part to {wanted}; {LABELS_HINT}",
        )


def _given(source: ImageSource, labels: Labels, where: str, notes: tuple[str, ...]) -> Split:
    train_name = _one_of(labels.parts, TRAIN_NAMES)
    test_name = _one_of(labels.parts, (*TEST_NAMES, *VAL_NAMES))
    assert train_name is not None and test_name is not None  # noqa: PT018 # read_labels found them
    _refuse_lost([one for one in labels.lost if one.partition("/")[0] in (train_name, test_name)], where)
    train, test = (np.flatnonzero(labels.part == labels.parts.index(name)) for name in (train_name, test_name))
    for chosen in (train, test):
        _refuse_unlabelled(source, labels, chosen)
    has_train, has_test = (set(labels.label[chosen].tolist()) for chosen in (train, test))
    for missing, there, absent in (
        (has_test - has_train, test_name, train_name),
        (has_train - has_test, train_name, test_name),
    ):
        if missing:
            name = shown(labels.classes[min(missing)])
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"{where}/{absent} has no folder {name}{others} with images, but {where}/{there} has",
                hint=f"both need the same classes: add images to {where}/{absent}/{name}, or remove "
                f"{where}/{there}/{name}",
            )
    kept = sorted(has_train)
    if not kept:
        raise DataError(
            f"{where}: {shown(train_name)} and {shown(test_name)} hold no class with a readable image", hint=LABELS_HINT
        )
    _refuse_few(kept, labels, where)
    unused = [name for name in labels.parts if name not in (train_name, test_name)]
    if unused:
        notes += (f"{where}: {', '.join(map(shown, unused))} is not used; the test images are {test_name}",)
    empty = [one for one in labels.empty if "/" not in one or one.partition("/")[0] in (train_name, test_name)]
    return _split(labels, kept, train, test, (*notes, *_left_out(empty, where)))


def _drawn(source: ImageSource, labels: Labels, where: str, seed: int, test_share: float) -> Split:
    _refuse_unlabelled(source, labels, np.arange(len(labels.label)))
    _refuse_few(sorted(set(labels.label.tolist())), labels, where)
    train, test = [], []
    for name, own in zip(labels.classes, by_label(labels.label), strict=True):
        if len(own) < 2:
            raise DataError(
                f"{where}/{shown(name)} has only one image; training and testing need one image each",
                hint="add images to this folder, or remove it",
            )
        order = own[_order(len(own), seed, "test", name)]
        held = min(len(own) - 1, max(1, round(test_share * len(own))))
        test.append(order[:held])
        train.append(order[held:])
    chosen = np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    note = (
        f"{where} is not divided into train/ and test/ (or val/): {test_share:.0%} of each class "
        f"({len(chosen[1]):,} of {len(labels.label):,} images) are test images, drawn by --seed {seed}"
    )
    return _split(labels, list(range(len(labels.classes))), *chosen, (note, *_left_out(labels.empty, where)))


def _split(
    labels: Labels, kept: Sequence[int], train: NDArray[np.int64], test: NDArray[np.int64], notes: tuple[str, ...]
) -> Split:
    number = np.full(len(labels.classes), -1, dtype=np.int64)
    number[list(kept)] = np.arange(len(kept))
    classes = tuple(labels.classes[one] for one in kept)
    return Split(classes, train, number[labels.label[train]], test, number[labels.label[test]], notes)


def _refuse_unlabelled(source: ImageSource, labels: Labels, chosen: NDArray[np.int64]) -> None:
    bad = chosen[labels.label[chosen] < 0]
    if len(bad):
        others = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
        raise DataError(f"{shown(source.name(int(bad[0])))}{others} is in no class folder", hint=LABELS_HINT)


def _refuse_few(kept: Sequence[int], labels: Labels, where: str) -> None:
    if len(kept) < 2:
        empty = f" (no image in {a_few(labels.empty)})" if labels.empty else ""
        raise DataError(
            f"{where}: there is only one class, {shown(labels.classes[kept[0]])}{empty}; two are needed",
            hint=LABELS_HINT,
        )


def stratified(labels: NDArray[np.int64], share: float, seed: int, purpose: str) -> NDArray[np.int64]:
    """Indices of a fraction of each class, at least one of each, ascending.

    A smaller fraction with the same seed is a subset of a larger one.
    """
    chosen = []
    for own in by_label(labels):
        count = min(len(own), max(1, round(share * len(own))))
        chosen.append(own[_order(len(own), seed, purpose, str(labels[own[0]]))][:count])
    return np.sort(np.concatenate(chosen))


def by_label(labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The indices of each label, ascending; labels in order. Sorted once, since each of 20,000 classes takes a pass."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _order(count: int, seed: int, *purpose: str) -> NDArray[np.int64]:
    import torch

    order: NDArray[np.int64] = torch.randperm(count, generator=stream(seed, *purpose)).numpy()
    return order
