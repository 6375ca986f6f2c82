"""Predict the classes of images with a fine-tuned classifier."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from mae.checkpoints import load_checkpoint
from mae.checkpoints.classifiers import build_classifier, class_names, has_head, no_head
from mae.data.decoding.image import check_channels
from mae.data.eval_loader import EvalDataset, eval_batches, in_batches
from mae.data.eval_transform import EvalTransform
from mae.data.loader import loader_workers
from mae.data.sources.scan import scan_images
from mae.data.transforms import normalise
from mae.errors import CheckpointError, ConfigError, DataError
from mae.evaluation.config import FINETUNED, PredictConfig
from mae.evaluation.extract import Progress
from mae.io.download import obeys_offline
from mae.io.files import refuse_input, refuse_place, write_atomically
from mae.io.notebook import Drawn, Table
from mae.io.text import shown, unfolded
from mae.system.device import autocast, settle
from mae.system.distributed import refuse_several

MOST_KEPT = 50  # predictions in the result if all are written to a file


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image.

    Attributes:
        image: Name of the image.
        classes: (name, probability), most probable first.
    """

    image: str
    classes: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class PredictResult(Drawn):
    """Result of ``predict``.

    Attributes:
        checkpoint: File of the classifier.
        images: Number of classified images.
        predictions: Predictions in the order of the images; only the first 50 if all are written to ``out``.
        out: The written table; None if none was requested.
        skipped: (name, reason) of images that could not be read.
        notes: Messages for the user.
    """

    checkpoint: Path
    images: int
    predictions: tuple[Prediction, ...]
    out: Path | None
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def _table(self) -> Table:
        return Table(
            f"{self.images:,} images",
            [
                (one.image, *(f"{name} {share:.1%}" for name, share in one.classes))
                for one in self.predictions[:MOST_KEPT]
            ],
        )


@obeys_offline
def predict(config: PredictConfig, on_progress: Callable[[Progress], None] = lambda progress: None) -> PredictResult:
    """Predict the most probable classes of images, given as files, folders or archives.

    Args:
        config: All settings.
        on_progress: Called with the progress.

    Raises:
        ConfigError: Settings that cannot be used.
        DataError: No image can be read.
        CheckpointError: The file holds no classifier.
    """
    refuse_several("predict")
    if config.out is not None:
        refuse_place(config.out, "--out")
    if config.checkpoint == FINETUNED and not FINETUNED.exists():
        raise CheckpointError(
            f"there is no classifier in ./{FINETUNED}",
            hint="train one on labelled images: maecli finetune DATA; or name one: --checkpoint PATH",
        )
    checkpoint = load_checkpoint(config.checkpoint)
    if config.out is not None:
        inputs = {"the checkpoint": [checkpoint.path], "the images": config.images}
        refuse_input(config.out, "--out", inputs)
    if not has_head(checkpoint):
        raise no_head(checkpoint)
    model, notes = build_classifier(checkpoint, img_size=config.image_size)
    check_channels(model.config.in_chans)
    names, told = class_names(checkpoint)
    if not told:
        notes += (f"{shown(checkpoint.path)} has no class names, so classes are shown as numbers",)
    computing = settle(config.device, config.precision)
    device = computing.device
    model = model.to(device)
    scan = scan_images(config.images, lambda files: on_progress(Progress("looking at files", files, 0)))
    notes += tuple(scan.images.warnings)
    if config.top_k > len(names):
        notes += (f"--top-k {config.top_k}: the classifier has only {len(names):,} classes, so all are shown",)
    dataset = EvalDataset(scan.images, EvalTransform(model.config.img_size, config.crop_pct), model.config.in_chans)
    batches = in_batches(range(len(dataset)), config.batch_size)
    skipped = [(unfolded(one.path), one.reason) for one in scan.unreadable]
    count = 0

    def predictions() -> Iterator[Prediction]:
        nonlocal count
        workers = min(loader_workers(config.workers, device), len(batches) - 1)  # none for a single batch
        for batch in eval_batches(dataset, batches, workers=workers):
            skipped.extend((unfolded(scan.images.name(index)), reason) for index, reason in batch.unreadable)
            if batch.indices:
                with torch.inference_mode(), autocast(device, computing.precision):
                    logits = model(normalise(batch.images.to(device, non_blocking=True))).float()
                _refuse_not_finite(
                    checkpoint.path, logits, [unfolded(scan.images.name(index)) for index in batch.indices]
                )
                shares, places = logits.softmax(dim=1).topk(min(config.top_k, len(names)), dim=1)
                for index, row, values in zip(batch.indices, places.tolist(), shares.tolist(), strict=True):
                    named = tuple((names[place], share) for place, share in zip(row, values, strict=True))
                    yield Prediction(unfolded(scan.images.name(index)), named)
                count += len(batch.indices)
            done = count + len(skipped) - len(scan.unreadable)
            on_progress(Progress("predicting", done, len(dataset)))
        if not count:
            name, reason = skipped[0]
            raise DataError(f"none of {len(dataset):,} images can be read, for instance {shown(name)}: {reason}")

    found = list(predictions()) if config.out is None else _write_table(config.out, predictions())
    return PredictResult(checkpoint.path, count, tuple(found), config.out, tuple(skipped), (*checkpoint.notes, *notes))


def _refuse_not_finite(checkpoint: Path, logits: Tensor, names: Sequence[str]) -> None:
    """Raise an error if a logit is non-finite."""
    bad = (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise CheckpointError(
            f"{shown(checkpoint)}: its logits for {shown(names[bad[0]])} are non-finite",
            hint="if this also happens with --precision fp32, its training has diverged",
        )


def _write_table(out: Path, predictions: Iterable[Prediction]) -> list[Prediction]:
    """Write all predictions to a table, and return the first ones."""
    first: list[Prediction] = []

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="", write_through=True)
        try:
            _write_rows(csv.writer(text, lineterminator="\n"), predictions, first)
        finally:
            text.detach()

    try:
        write_atomically(out, write)
    except OSError as error:
        raise ConfigError(f"--out {shown(out)}: {error.strerror}") from None
    return first


def _write_rows(writer: Any, predictions: Iterable[Prediction], first: list[Prediction]) -> None:
    for one in predictions:
        if not first:
            ranks = range(1, len(one.classes) + 1)
            writer.writerow(["image", *(name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}"))])
        if len(first) < MOST_KEPT:
            first.append(one)
        writer.writerow([one.image, *(value for name, share in one.classes for value in (name, f"{share:.6g}"))])
