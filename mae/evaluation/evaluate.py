"""Evaluate frozen features of checkpoints on labelled images."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config import MAEConfig
from mae.data.eval_loader import EvalDataset
from mae.data.eval_transform import EvalTransform
from mae.data.sources.base import ImageSource, Subset
from mae.data.sources.scan import ImageScan, scan_images
from mae.evaluation.attentive import attentive
from mae.evaluation.baselines import whiten
from mae.evaluation.config import EvaluateConfig
from mae.evaluation.extract import Progress, check_unreadable
from mae.evaluation.features import FeatureSet, Kept, keep_features
from mae.evaluation.frozen import FrozenEncoder, View, load_encoder, untrained_encoder
from mae.evaluation.gallery import make_gallery
from mae.evaluation.knn import knn
from mae.evaluation.linear import LinearResult, linear
from mae.evaluation.metrics import accuracy, alpha_req, by_class, rank_me
from mae.evaluation.page import page
from mae.evaluation.results import (
    Accuracy,
    Attentive,
    EvaluateResult,
    Headline,
    Linear,
    Row,
    Scores,
    Seconds,
    view_name,
)
from mae.evaluation.splits import Split, make_split, read_labels, refuse_unreadable_classes, stratified
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place, write_output
from mae.io.text import shown, unfolded
from mae.io.urls import public_name
from mae.system.device import Computing, settle
from mae.system.distributed import refuse_several

FEW_TEST_IMAGES = 1000


@obeys_offline
def evaluate(config: EvaluateConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> EvaluateResult:
    """Evaluate frozen features with probes on labelled images.

    Features are computed once and cached on disk. Every choice (penalty, learning rate, view of the headline) is made
    on held-out training images; each probe predicts the test images once.

    Args:
        config: All settings.
        on_progress: Called with the progress.

    Raises:
        ConfigError: Settings that cannot be used.
        DataError: The class folders cannot be used, or too many images are unreadable.
        CheckpointError: Weights cannot be used.
    """
    refuse_several("evaluate")
    if config.report is not None:
        refuse_place(config.report, "--report")
        refuse_input(config.report, "--report", {"a checkpoint": config.checkpoint, "the data": [config.data]})
    computing = settle(config.device, config.precision)
    encoders = _encoders(config, computing)
    scan = scan_images([config.data], lambda files: on_progress(Progress("looking at files", files, 0)))
    data = Path(public_name(config.data))
    labels = read_labels(scan.images, [config.data], [one.path for one in scan.unreadable], scan.looked_into)
    split = make_split(scan.images, labels, shown(data), seed=config.seed, test_share=config.test_share)
    began = time.monotonic()
    features, notes = keep_features(config, scan.images, split, encoders, computing, on_progress)
    features_seconds = time.monotonic() - began
    skipped = _skipped(scan, features)
    check_unreadable(skipped, len(features.used) + len(scan.unreadable), config.max_unreadable)
    refuse_unreadable_classes(split.classes, features.train_labels, features.test_labels, shown(data))
    began = time.monotonic()
    asked = _Probes(config, split, features, _probe_device(computing.device), on_progress)
    rows = asked.rows()
    headline = asked.headline()
    result = EvaluateResult(
        data=data,
        train_images=len(features.train),
        test_images=len(features.test),
        classes=split.classes,
        split="folders" if labels.parts else "seed",
        precision=computing.precision,
        device=computing.device.type,
        rows=tuple(rows),
        headline=headline,
        report=config.report,
        seconds=Seconds(features.seconds, features_seconds, time.monotonic() - began),
        skipped=tuple(skipped),
        notes=(
            *split.notes,
            *scan.images.warnings,
            *dict.fromkeys(note for _, encoder in encoders for note in encoder.notes),
            *notes,
            *_small_print(config, features, len(split.classes)),
        ),
    )
    if config.report is not None:
        on_progress(Progress("drawing the page", 0, 0, unit="pages"))
        _write_page(config.report, config, scan.images, features, asked.shown_view(), result)
    return result


def _probe_device(device: torch.device) -> torch.device:
    """Device of the probes: not an Apple GPU, which has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _write_page(
    path: Path, config: EvaluateConfig, source: ImageSource, features: FeatureSet, view: View, result: EvaluateResult
) -> None:
    """Write the HTML page about one view of the first checkpoint."""
    first = features.kept[0]
    assert first.encoder is not None
    frame = EvalTransform(first.encoder.config.img_size, config.crop_pct)
    train, test = features.view(first, view.name)
    gallery = make_gallery(
        EvalDataset(Subset(source, features.used), frame, first.encoder.config.in_chans),
        train,
        features.train,
        features.train_labels,
        test,
        features.test,
        features.test_labels,
        seed=config.seed,
    )
    document = page(result, gallery, view_name(view.pool, view.norm), time.time()).encode()
    write_output(path, document, "--report")


def _encoders(config: EvaluateConfig, computing: Computing) -> list[tuple[str, FrozenEncoder]]:
    """The encoders of the checkpoints, and an untrained one for each architecture."""
    paths: list[Path | None] = list(dict.fromkeys(config.checkpoint)) or [None]
    blocks: dict[str, Any] = {"layer": config.layer, "last_blocks": config.last_blocks}
    loaded = [load_encoder(path, computing, image_size=config.image_size, **blocks) for path in paths]
    encoders = [("checkpoint", encoder) for encoder in loaded]
    if config.references:
        architectures = {_encoder_sizes(encoder.config): encoder.config for encoder in reversed(loaded)}
        encoders += [
            ("untrained", untrained_encoder(one, computing, **blocks, seed=config.seed))
            for one in reversed(architectures.values())
        ]
    return encoders


def _encoder_sizes(config: MAEConfig) -> tuple[object, ...]:
    return config.img_size, config.patch_size, config.in_chans, config.embed_dim, config.depth, config.num_heads


def _skipped(scan: ImageScan, features: FeatureSet) -> list[tuple[str, str]]:
    return [(unfolded(one.path), one.reason) for one in scan.unreadable] + [
        (unfolded(scan.images.name(int(features.used[index]))), reason) for index, reason in features.unreadable()
    ]


def _small_print(config: EvaluateConfig, features: FeatureSet, classes: int) -> tuple[str, ...]:
    notes = []
    if config.last_blocks > 1:
        notes.append(f"features of encoders are those of {config.last_blocks} blocks side by side (--last-blocks)")
    if len(features.test) < FEW_TEST_IMAGES:
        notes.append(
            f"with {len(features.test):,} test images, smaller differences than the intervals may be chance; "
            "compare with other values of --seed"
        )
    for share in config.label_fraction:
        wanted = share * len(features.train)
        if wanted < classes:
            notes.append(
                f"--label-fraction {share:g} is {wanted:.1f} images, fewer than the {classes:,} classes: one image of "
                "each class is used"
            )
    return tuple(notes)


@dataclasses.dataclass
class _Best:
    """The linear probe with the best held-out accuracy so far."""

    kept: Kept
    view: View
    result: LinearResult
    test: Accuracy


class _Probes:
    """Runs the requested probes on all features."""

    def __init__(
        self,
        config: EvaluateConfig,
        split: Split,
        features: FeatureSet,
        device: torch.device,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.config = config
        self.split = split
        self.features = features
        self.device = device
        self.on_progress = on_progress
        self.classes = len(split.classes)
        self.best: _Best | None = None
        self.done = 0
        self.total = sum(len(one.views) + (one.patches is not None) if one.encoder else 2 for one in features.kept)

    def rows(self) -> list[Row]:
        """Rows of the table: encoders as given, then the baselines."""
        rows = []
        self.on_progress(Progress("probing", 0, self.total, unit="kinds of features"))
        for one in self.features.kept:
            if one.encoder is None:
                rows += self._pixels(one)
                continue
            for view in one.views:
                train, test = self.features.view(one, view.name)
                rows.append(self._row(one, one.name, view, train, test))
            if one.patches is not None:
                rows.append(self._patches(one, one.patches))
        return sorted(rows, key=lambda row: ("checkpoint", "untrained", "pixels").index(row.kind))

    def _pixels(self, kept: Kept) -> list[Row]:
        train, test = self.features.view(kept, "pixels")
        widths = [one.encoder.config.embed_dim for one in self.features.kept if one.encoder]
        plain = self._row(kept, kept.name, None, train, test)
        return [plain, self._row(kept, "pixels, whitened", None, *whiten(train, test, widths[0]))]

    def _fractions(self, stored: NDArray[np.int64]) -> list[tuple[float, NDArray[np.int64]]]:
        """(fraction of the labels, indices of the training images among ``stored``) for each ``--label-fraction``."""
        labels = self.features.train_labels
        parts = [(share, share / (len(stored) / len(labels))) for share in sorted(self.config.label_fraction)]
        return [
            (share, stored if part >= 1 else stored[stratified(labels[stored], part, self.config.seed, "labels")])
            for share, part in parts
        ]

    def _row(self, kept: Kept, subject: str, view: View | None, train: Tensor, test: Tensor) -> Row:
        train, test = train.to(self.device), test.to(self.device)
        fractions = self._fractions(np.arange(len(train)))
        scores = tuple(self._scores(kept, view, share, rows, train, test) for share, rows in fractions)
        self._step()
        return Row(
            subject=subject,
            kind=kept.kind,
            pool=view.pool if view else None,
            feature_norm=view.norm if view else None,
            dimensions=train.shape[1],
            rank_me=rank_me(train.cpu(), seed=self.config.seed),
            alpha_req=alpha_req(train.cpu(), seed=self.config.seed),
            scores=scores,
        )

    def _scores(
        self, kept: Kept, view: View | None, share: float, rows: NDArray[np.int64], train: Tensor, test: Tensor
    ) -> Scores:
        config, truth = self.config, self.features.test_labels
        labels = self.features.train_labels[rows]
        train = train[torch.from_numpy(rows).to(self.device)] if len(rows) < len(train) else train
        neighbours = fitted = None
        if "knn" in config.probe:
            found = knn(train, torch.from_numpy(labels).to(self.device), test, self.classes)
            neighbours = {k: accuracy(predicted, truth) for k, predicted in found.predicted.items()}
        if "linear" in config.probe:
            result = linear(train, labels, test, self.classes, seed=config.seed)
            fitted = Linear(accuracy(result.predicted, truth), result.penalty, result.held_out)
            if view is not None and share == max(config.label_fraction):
                self._compare(_Best(kept, view, result, fitted.test))
        return Scores(share, len(rows), neighbours, fitted, None)

    def _compare(self, candidate: _Best) -> None:
        """Keep the candidate if it is the first checkpoint's best view on the held-out images (not on test images)."""
        if candidate.kept is not self.features.kept[0]:
            return
        if self.best is None or (candidate.result.held_out or 0) > (self.best.result.held_out or 0):
            self.best = candidate

    def _patches(self, kept: Kept, view: View) -> Row:
        tokens = self.features.patches(kept)
        test_places = np.flatnonzero(tokens.there[self.features.test])
        test, truth = self.features.test[test_places], self.features.test_labels[test_places]
        scores = []
        for share, rows in self._fractions(np.flatnonzero(tokens.there[self.features.train])):
            labels = self.features.train_labels[rows]
            result = attentive(
                tokens.of(self.features.train[rows]),
                labels,
                tokens.of(test),
                self.classes,
                device=self.device,
                seed=self.config.seed,
                on_step=lambda done, total: self.on_progress(Progress("attentive", done, total, unit="steps")),
            )
            probe = Attentive(
                accuracy(result.predicted, truth),
                result.lr,
                result.weight_decay,
                result.held_out,
                len(rows),
                len(test),
            )
            scores.append(Scores(share, len(rows), None, None, probe))
        self._step()
        assert kept.encoder is not None
        width = kept.encoder.config.embed_dim
        return Row(kept.name, kept.kind, view.pool, view.norm, width, None, None, tuple(scores))

    def _step(self) -> None:
        self.done += 1
        self.on_progress(Progress("probing", self.done, self.total, unit="kinds of features"))

    def shown_view(self) -> View:
        """The view that the page shows: the headline's, or the last one if there is no headline."""
        return self.best.view if self.best else self.features.kept[0].views[-1]

    def headline(self) -> Headline | None:
        """The headline result; None without the linear probe."""
        if self.best is None:
            return None
        truth, predicted = self.features.test_labels, self.best.result.predicted
        classes, confusion = by_class(predicted, truth, self.split.classes)
        return Headline(
            subject=self.best.kept.name,
            pool=self.best.view.pool,
            feature_norm=self.best.view.norm,
            linear=self.best.test,
            mean_class_accuracy=sum(one.test.value for one in classes) / len(classes),
            classes=classes,
            confusion=confusion,
        )
