"""Features of labelled images, computed once and cached on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.eval_loader import EvalDataset
from mae.data.eval_transform import EvalTransform
from mae.data.sources.base import ImageSource, Subset
from mae.evaluation.baselines import PixelExtractor
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.extract import Job, Progress, ViewExtractor, extract
from mae.evaluation.frozen import FrozenEncoder, View
from mae.evaluation.splits import Split, stratified
from mae.evaluation.store import VERSION, PartStore, content_digest
from mae.io.download import cache_folder
from mae.system.device import Computing

MOST_OPEN = 128  # files of patch tokens that are open at once; a process may usually open 1,024, or 256 on a Mac
PART_IMAGES = 512  # the same for all encoders, so that one pass over the images computes the features of all
MOST_CACHED_BYTES = 20e9  # limit of the default folder; the least recently used features are deleted


@dataclasses.dataclass(frozen=True)
class Kept:
    """Cached features of an encoder or of pixels.

    Attributes:
        name: Name of the encoder or baseline.
        kind: "checkpoint", "untrained" or "pixels".
        encoder: The encoder; None for pixels.
        store: Files of the arrays.
        views: Available views, without patches.
        patches: The view of patch tokens, if stored.
    """

    name: str
    kind: str
    encoder: FrozenEncoder | None
    store: PartStore
    views: tuple[View, ...]
    patches: View | None


class FeatureSet:
    """Features of training and test images, and their labels.

    Args:
        kept: The cached features.
        split: Which images train and test, as numbers in the source.
        used: Numbers in the source of the images with features, ascending.
        with_patches: (len(used),), whether their patch tokens are stored.
        seconds: Duration of the forward passes.
    """

    def __init__(
        self,
        kept: Sequence[Kept],
        split: Split,
        used: NDArray[np.int64],
        with_patches: NDArray[np.bool_],
        seconds: float,
    ) -> None:
        self.kept = kept
        self.used = used
        self.with_patches = with_patches
        self.seconds = seconds
        self._row_of = {one.store.folder: _rows(one.store) for one in kept}
        # A file may have broken after its features of one encoder were stored; it is left out for all.
        self._there = np.logical_and.reduce([row_of >= 0 for row_of in self._row_of.values()])
        self.train, self.train_labels = self._readable(split.train, split.train_labels)
        self.test, self.test_labels = self._readable(split.test, split.test_labels)

    def _readable(
        self, images: NDArray[np.int64], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices into ``used`` of images with features, and their labels."""
        places = np.searchsorted(self.used, images)
        there = self._there[places]
        return places[there], labels[there]

    def unreadable(self) -> list[tuple[int, str]]:
        """(index into ``used``, reason) of the images without features, ascending."""
        return sorted(dict(bad for one in self.kept for bad in one.store.unreadable()).items())

    def view(self, kept: Kept, name: str) -> tuple[Tensor, Tensor]:
        """Features of the training and the test images, (N, D), (M, D)."""
        whole, row_of = torch.from_numpy(kept.store.whole(name)), self._row_of[kept.store.folder]
        return whole[row_of[self.train]], whole[row_of[self.test]]

    def patches(self, kept: Kept) -> PatchTokens:
        """Patch tokens by index into ``used``."""
        assert kept.patches is not None
        return PatchTokens(kept.store, kept.patches.name, self._row_of[kept.store.folder], self.with_patches)


def _rows(store: PartStore) -> NDArray[np.int64]:
    """(U,), the row of each image in the arrays, or -1 for an unreadable one."""
    readable = store.readable()
    row_of = np.full(store.images, -1, dtype=np.int64)
    row_of[readable] = np.arange(len(readable))
    return row_of


class PatchTokens:
    """Patch tokens that are read from files on demand.

    Args:
        store: Files of the arrays.
        name: Name of the array.
        row_of: (U,), row of an image in the arrays, or -1.
        with_patches: (U,), whether the tokens of an image are stored.
    """

    def __init__(self, store: PartStore, name: str, row_of: NDArray[np.int64], with_patches: NDArray[np.bool_]) -> None:
        there = with_patches & (row_of >= 0)
        self._part = np.arange(len(row_of)) // store.part_images
        self._row = np.zeros(len(row_of), dtype=np.int64)
        for part in store.parts:
            own = slice(store.indices(part).start, store.indices(part).stop)
            self._row[own] = np.cumsum(there[own]) - 1
        self.there = there
        self._read = functools.lru_cache(MOST_OPEN)(lambda part: store.read(part, name))

    def of(self, images: NDArray[np.int64]) -> ChosenTokens:
        """The patch tokens of some images, given by index into ``used``, in their order."""
        return ChosenTokens(self, images)

    def take(self, images: NDArray[np.int64]) -> Tensor:
        """Patch tokens of some images, (B, L, D) float16."""
        first = self._read(0)
        out = np.empty((len(images), *first.shape[1:]), first.dtype)
        parts = self._part[images]
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            out[places] = self._read(int(part))[self._row[images[places]]]
        return torch.from_numpy(out)


class ChosenTokens:
    """Patch tokens of some images, renumbered from 0."""

    def __init__(self, tokens: PatchTokens, images: NDArray[np.int64]) -> None:
        self._tokens = tokens
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """Patch tokens of the images with these indices, (B, L, D) float16."""
        return self._tokens.take(self._images[rows])


def keep_features(
    config: EvaluateConfig,
    source: ImageSource,
    split: Split,
    encoders: Sequence[tuple[str, FrozenEncoder]],
    computing: Computing,
    on_progress: Callable[[Progress], None],
) -> tuple[FeatureSet, tuple[str, ...]]:
    """Compute the features that are not on the disk yet; each image is decoded once per image size.

    Args:
        config: Settings.
        source: All images.
        split: The images to use.
        encoders: The encoders, each with its kind, "checkpoint" or "untrained".
        computing: Device and precision.
        on_progress: Called with the progress.

    Returns:
        The features, and messages for the user.
    """
    used = np.sort(np.concatenate([split.train, split.test]))
    images = Subset(source, used)
    with_patches, notes = _with_patches(config, split, used, [encoder for _, encoder in encoders])
    shared: dict[str, Any] = {"data": content_digest(images), "crop_pct": config.crop_pct}
    top = config.cache or cache_folder() / "features"
    kept: list[Kept] = []
    seconds = 0.0
    by_frame: dict[tuple[Any, ...], list[tuple[str, FrozenEncoder]]] = {}
    for kind, encoder in encoders:
        by_frame.setdefault((encoder.config.img_size, encoder.config.in_chans), []).append((kind, encoder))
    for number, ((image_size, in_chans), group) in enumerate(by_frame.items()):
        dataset = EvalDataset(images, EvalTransform(image_size, config.crop_pct), in_chans)
        jobs = []
        for kind, encoder in group:
            one, extractor = _encoder_job(config, kind, encoder, top, shared, with_patches)
            kept.append(one)
            jobs.append(Job(extractor, one.store, one.store.missing(dataset.is_readable)))
        if config.references and not number:
            pixels = PixelExtractor(image_size, in_chans)
            settings = {**shared, **pixels.settings, "image_size": list(image_size)}
            store = _store(top, settings, len(images))
            kept.append(Kept(pixels.name, "pixels", None, store, (), None))
            jobs.append(Job(pixels, store, store.missing(dataset.is_readable)))
        seconds += extract(
            dataset,
            jobs,
            computing,
            batch_size=config.batch_size,
            workers=config.workers,
            on_progress=on_progress,
            stage="features",
        )
    given = [encoder for _, encoder in encoders]
    kept.sort(key=lambda one: given.index(one.encoder) if one.encoder else len(given))
    for one in kept:
        one.store.touch()
    if config.cache is None:
        prune(top, {one.store.folder for one in kept}, MOST_CACHED_BYTES)
    return FeatureSet(kept, split, used, with_patches, seconds), notes


def _encoder_job(
    config: EvaluateConfig,
    kind: str,
    encoder: FrozenEncoder,
    top: Path,
    shared: Mapping[str, Any],
    with_patches: NDArray[np.bool_],
) -> tuple[Kept, ViewExtractor]:
    norms = ("none", "final") if kind == "checkpoint" else ("final",)
    views = tuple(view for pool in ("cls", "mean") for norm in norms if encoder.has(view := View(pool, norm)))
    patches = next(view for norm in ("final", "none") if encoder.has(view := View("patches", norm)))
    wanted: dict[View, str] = dict.fromkeys(views, "float32")
    settings = {**shared, **encoder.settings, "views": [view.name for view in views]}
    if "attentive" in config.probe:
        wanted[patches] = "float16"
        settings["patches"] = hashlib.blake2b(with_patches.tobytes(), digest_size=8).hexdigest()
    store = _store(top, settings, len(with_patches))
    one = Kept(encoder.name, kind, encoder, store, views, patches if patches in wanted else None)
    return one, ViewExtractor(encoder, wanted, with_patches)


def _store(top: Path, settings: Mapping[str, Any], images: int) -> PartStore:
    every = {**settings, "part_images": PART_IMAGES, "version": VERSION}
    key = hashlib.blake2b(json.dumps(every, sort_keys=True).encode(), digest_size=12).hexdigest()
    store = PartStore(top / key, settings, images, PART_IMAGES)
    store.open("--cache")
    return store


def _with_patches(
    config: EvaluateConfig, split: Split, used: NDArray[np.int64], encoders: Sequence[FrozenEncoder]
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Choose the images whose patch tokens are stored, within the limit of space; the same for all encoders."""
    chosen = np.zeros(len(used), dtype=bool)
    if "attentive" not in config.probe:
        return chosen, ()
    each = sum(2 * encoder.config.num_patches * encoder.config.embed_dim for encoder in encoders)
    room = max(2 * len(split.classes), int(config.tokens_gb * 1e9 / each))
    if len(used) <= room:
        return ~chosen, ()
    test = min(len(split.test), max(room // 2, room - len(split.train)))
    train = min(len(split.train), room - test)
    for images, labels, count in ((split.train, split.train_labels, train), (split.test, split.test_labels, test)):
        part = stratified(labels, count / len(labels), config.seed, "patches")
        chosen[np.searchsorted(used, images[part])] = True
    train, test = (int(chosen[np.searchsorted(used, images)].sum()) for images in (split.train, split.test))
    note = (
        f"the attentive probe uses {train:,} of {len(split.train):,} training images and {test:,} of "
        f"{len(split.test):,} test images: all patch tokens would take {len(used) * each / 1e9:,.0f} GB (--tokens-gb)"
    )
    return chosen, (note,)


def prune(top: Path, in_use: set[Path], most: float) -> None:
    """Delete the least recently used features until the rest takes less than ``most`` bytes."""
    try:
        found = sorted((entry for entry in top.iterdir() if entry.is_dir()), key=lambda entry: -entry.stat().st_mtime)
        total = 0.0
        for folder in sorted(found, key=lambda folder: folder not in in_use):
            total += sum(entry.stat().st_size for entry in os.scandir(folder))
            if total > most and folder not in in_use:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # another process may be deleting it too
        return
