"""Measurements during training: the loss of held-out images under fixed masks, and probes of the encoder.

Measurements use their own random generators and do not change the model, so a run has the same losses with and
without them. Every process evaluates its part of the images, with equal numbers of forward passes; rank 0 fits the
probes.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.eval_loader import EvalDataset, eval_batches, in_batches
from mae.data.eval_transform import EvalTransform
from mae.data.loader import loader_workers
from mae.data.sources.base import ImageSource, Subset
from mae.data.sources.scan import scan_images
from mae.data.transforms import normalise
from mae.errors import DataError
from mae.evaluation.knn import knn
from mae.evaluation.linear import linear
from mae.evaluation.metrics import rank_me
from mae.evaluation.results import nearest_k
from mae.evaluation.splits import Split, make_split, read_labels, refuse_unreadable_classes, stratified
from mae.io.text import shown
from mae.io.urls import public_name
from mae.mae import MaskedAutoencoder
from mae.system.device import autocast
from mae.system.distributed import Ranks
from mae.system.seeding import stream
from mae.training.config import PretrainConfig
from mae.training.events import Probed, ProbePlan
from mae.training.log import Logged
from mae.training.previews import MASK_SEED, evenly_chosen

MOST_VAL_IMAGES = 512
LEAST_VAL_IMAGES = 16  # or a tenth of the training images, if more; then validation adds a few per cent to an epoch
TEST_SHARE = 1 / 3  # fraction of the images of ``--probe``
MOST_BATCH = 64
FEWEST_FOR_WORKERS = 128  # images; decoding fewer takes less time than starting loader processes
Made = TypeVar("Made")


class _Batch(NamedTuple):
    """A batch: indices into the chosen images, (B,), and the images, (B, C, H, W) uint8."""

    places: NDArray[np.int64]
    images: Tensor


@dataclasses.dataclass(frozen=True)
class FixedImages:
    """Decoded images that are evaluated repeatedly; each process holds its own batches of them.

    Attributes:
        readable: Indices of the readable images among the chosen ones, ascending.
        batches: Batches of this process.
        rounds: Largest number of batches of any process.
    """

    readable: NDArray[np.int64]
    batches: tuple[_Batch, ...]
    rounds: int


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Labelled images for the probes.

    Attributes:
        images: Training images, then test images.
        train, test: Indices into ``images.readable``.
        train_labels, test_labels: Classes of the training and of the test images.
        classes: Number of classes.
    """

    images: FixedImages
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    classes: int


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """The images of ``--val`` and ``--probe``, and the settings of the measurements.

    Attributes:
        val: Images for the held-out loss; None without ``--val``.
        labelled: Images for the probes; None without ``--probe``.
        every: Epochs between two probes.
        mask_ratio: Fraction of the patches that is masked for the held-out loss.
        seed: Seed of the probes.
        notes: Messages for the user.
    """

    val: FixedImages | None
    labelled: Labelled | None
    every: int
    mask_ratio: float
    seed: int
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Loader:
    """Decodes images that are evaluated repeatedly; each process decodes and keeps its own batches."""

    transform: EvalTransform
    in_chans: int
    batch_size: int
    workers: int
    max_unreadable: float
    ranks: Ranks

    def load(self, source: ImageSource, chosen: NDArray[np.int64], option: str) -> tuple[FixedImages, Sequence[str]]:
        """Decode this process's batches of the chosen images of a source.

        Args:
            source: The images.
            chosen: Numbers of the images to decode.
            option: The option that names the source, for messages.
        """
        ranks = self.ranks
        own = in_batches(range(len(chosen)), self.batch_size)[ranks.rank :: ranks.size]
        dataset = EvalDataset(Subset(source, chosen), self.transform, self.in_chans)
        workers = min(self.workers, len(own)) if len(chosen) >= FEWEST_FOR_WORKERS else 0
        loaded = list(eval_batches(dataset, own, workers=workers)) if own else []
        bad = sorted(
            one for part in ranks.gather([one for batch in loaded for one in batch.unreadable]) for one in part
        )
        notes = []
        if bad:
            place, reason = bad[0]
            what = (
                f"{option}: {len(bad):,} of {len(chosen):,} images are unreadable, for instance "
                f"{shown(source.name(int(chosen[place])))}: {reason}"
            )
            if len(bad) > self.max_unreadable * len(chosen) or len(bad) == len(chosen):
                raise DataError(what, hint="repair or remove them, or allow more with --max-unreadable")
            notes.append(what)
        readable = np.setdiff1d(np.arange(len(chosen)), np.array([place for place, _ in bad], dtype=np.int64))
        kept = tuple(_Batch(np.array(one.indices, dtype=np.int64), one.images) for one in loaded if one.indices)
        return FixedImages(readable, kept, max(ranks.gather(len(kept)))), notes


def find_probe_data(
    config: PretrainConfig, held_out: ImageSource | None, train_images: int, ranks: Ranks, device: torch.device
) -> ProbeData:
    """Find the images of ``--val`` and ``--probe`` and decode them, before anything is written.

    Args:
        config: Settings of the run.
        held_out: The images of ``--val``.
        train_images: Number of training images.
        ranks, device: Processes of the run, and the device of this process.

    Raises:
        DataError: Images or labels cannot be used.
    """
    val, labelled = None, None
    notes: list[str] = []
    loader = _Loader(
        EvalTransform(config.image_size),
        config.in_chans,
        min(MOST_BATCH, config.batch_size),
        loader_workers(config.workers, device),
        config.max_unreadable,
        ranks,
    )
    if held_out is not None:
        ranks.check_same("images of --val", (len(held_out), held_out.digest()))
        count = min(MOST_VAL_IMAGES, max(LEAST_VAL_IMAGES, train_images // 10))
        chosen = np.sort(np.array(evenly_chosen(len(held_out), count)[:count], dtype=np.int64))
        val, note = loader.load(held_out, chosen, "--val")
        notes += note
    if config.probe is not None:
        labelled, note = _labelled(config.probe, config.probe_images, config.seed, loader)
        notes += note
    return ProbeData(val, labelled, config.probe_every, config.mask_ratio, config.seed, tuple(notes))


def _labelled(data: Path, most: int, seed: int, loader: _Loader) -> tuple[Labelled, Sequence[str]]:
    """The images of ``--probe``, split into a training and a test part; the split is the same in every process."""
    where = shown(public_name(data))
    try:
        scan = scan_images([data])
        source = scan.images
        labels = read_labels(source, [data], [one.path for one in scan.unreadable])
        split = make_split(source, labels, where, seed=seed, test_share=TEST_SHARE, default_share=TEST_SHARE)
    except DataError as error:
        raise DataError(f"--probe {error.message}", hint=error.hint) from None
    loader.ranks.check_same("images of --probe", (len(source), source.digest()))
    train, test = _bounded(split, most, seed)
    chosen = np.concatenate([split.train[train], split.test[test]])
    images, notes = loader.load(source, chosen, "--probe")
    of = np.concatenate([split.train_labels[train], split.test_labels[test]])[images.readable]
    teaches = images.readable < len(train)
    found = Labelled(
        images,
        np.flatnonzero(teaches),
        np.flatnonzero(~teaches),
        of[teaches],
        of[~teaches],
        len(split.classes),
    )
    refuse_unreadable_classes(split.classes, found.train_labels, found.test_labels, f"--probe {where}")
    return found, (*split.notes, *notes)


def _bounded(split: Split, most: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of at most about ``most`` training and test images, with at least one of each class in each part."""
    test = max(1, min(len(split.test), round(most * TEST_SHARE)))
    train = max(1, min(len(split.train), most - test))
    return (
        stratified(split.train_labels, min(1.0, train / len(split.train)), seed, "probe train"),
        stratified(split.test_labels, min(1.0, test / len(split.test)), seed, "probe test"),
    )


@dataclasses.dataclass
class Probes:
    """Measures a model on images that it is not trained on.

    Attributes:
        model: The model on its device; it may be sharded.
        data: The images.
        ranks: The processes that share the run; all of them must call the same methods.
        precision: Precision of the forward passes.
        epochs: Total number of epochs of the run; after the last one everything is measured.
        plan: What is measured and how long it takes; None before ``begin``, or if nothing is measured.
    """

    model: MaskedAutoencoder
    data: ProbeData
    ranks: Ranks
    precision: str
    epochs: int
    plan: ProbePlan | None = None

    def begin(self, epochs: float, step: int, logged: Logged) -> Probed | None:
        """Compute the plan; measure once, unless the log of a resumed run has the durations.

        Args:
            epochs, step: Position of the run.
            logged: Values of the log up to that position.

        Returns:
            The measurement; None if there was none.
        """
        val, labelled = self.data.val, self.data.labelled
        wanted = {"val_seconds": val, "probe_seconds": labelled}
        if not any(wanted.values()):
            return None
        # Rank 0 decides: the other processes may not have access to its log.
        seconds = self.ranks.gather({name: logged.probed.get(name) for name in wanted})[0]
        probed = None
        if any(wanted[name] and seconds[name] is None for name in wanted):
            probed = self._measure(epochs, step, probe=labelled is not None)
            seconds = dataclasses.asdict(probed)
        self.plan = ProbePlan(
            val_images=len(val.readable) if val else 0,
            train_images=len(labelled.train) if labelled else 0,
            test_images=len(labelled.test) if labelled else 0,
            classes=labelled.classes if labelled else 0,
            every=self.data.every,
            val_seconds=seconds["val_seconds"] or 0.0 if val else 0.0,
            probe_seconds=seconds["probe_seconds"] or 0.0 if labelled else 0.0,
        )
        return probed

    def measure(self, epochs: int, step: int) -> Probed | None:
        """Measure what is due after ``epochs`` epochs; None if nothing is due."""
        probe = self.plan is not None and self.plan.due(epochs, self.epochs)
        return self._measure(epochs, step, probe=probe) if probe or self.data.val else None

    def _measure(self, epochs: float, step: int, *, probe: bool) -> Probed:
        probed = Probed(epochs, step)
        if self.data.val is not None:
            began = time.monotonic()
            loss = self._val_loss(self.data.val)
            probed = dataclasses.replace(probed, val_loss=loss, val_seconds=_seconds_since(began))
        if probe and self.data.labelled is not None:
            began = time.monotonic()
            near, fitted, rank = self._probe(self.data.labelled)
            seconds = _seconds_since(began)
            probed = dataclasses.replace(probed, knn=near, linear=fitted, rank_me=rank, probe_seconds=seconds)
        return probed

    def _val_loss(self, images: FixedImages) -> float:
        """Mean loss of the images; each image has its own fixed mask, which is the same in every run."""
        count = int(images.readable.max()) + 1
        noise = torch.rand(count, self.model.config.num_patches, generator=stream(MASK_SEED, "val mask"))

        def loss(imgs: Tensor, places: NDArray[np.int64]) -> float:
            own = noise[torch.from_numpy(places)].to(imgs.device)
            return float(self.model.pretraining_loss(imgs, self.data.mask_ratio, own)) * len(places)

        return sum(total for _, total in self._map(images, loss)) / len(images.readable)

    def _probe(self, labelled: Labelled) -> tuple[float, float, float]:
        """Accuracy of k-NN and of a linear probe, and RankMe, of the mean of the patch tokens after the final norm."""

        def mean_of_patches(imgs: Tensor, _: NDArray[np.int64]) -> Tensor:
            return self.model.encode(imgs)[:, 1:].float().mean(dim=1).cpu()

        found = self._map(labelled.images, mean_of_patches)
        # The other processes wait for rank 0's values in the gather below.
        values = (math.nan, math.nan, math.nan)
        if self.ranks.first:
            values = self._fit(labelled, torch.cat([rows for _, rows in found]))
        first: tuple[float, float, float] = self.ranks.gather(values)[0]
        return first

    def _fit(self, labelled: Labelled, features: Tensor) -> tuple[float, float, float]:
        """The three values from features in the order of the images; NaN if a feature is non-finite."""
        if not bool(features.isfinite().all()):
            return math.nan, math.nan, math.nan
        train, test = features[torch.from_numpy(labelled.train)], features[torch.from_numpy(labelled.test)]
        labels = labelled.train_labels
        by_k = knn(train, torch.from_numpy(labels), test, labelled.classes).predicted
        named = by_k[nearest_k(by_k)]
        fitted = linear(train, labels, test, labelled.classes, seed=self.data.seed)
        return (
            float((named == labelled.test_labels).mean()),
            float((fitted.predicted == labelled.test_labels).mean()),
            rank_me(train, seed=self.data.seed),
        )

    @torch.no_grad()
    def _map(self, images: FixedImages, run: Callable[[Tensor, NDArray[np.int64]], Made]) -> list[tuple[int, Made]]:
        """Apply ``run`` to every batch of all processes: (index of the batch's first image, result), ascending.

        A sharded model needs all processes in each forward pass, so a process with fewer batches than the others
        evaluates a dummy image and discards the result.
        """
        config, device = self.model.config, next(self.model.parameters()).device
        dummy = _Batch(np.zeros(1, np.int64), torch.zeros(1, config.in_chans, *config.img_size, dtype=torch.uint8))
        found = []
        for number in range(images.rounds):
            batch = images.batches[number] if number < len(images.batches) else dummy
            with autocast(device, self.precision):
                result = run(normalise(batch.images.to(device)), batch.places)
            if batch is not dummy:
                found.append((int(batch.places[0]), result))
        return sorted((pair for part in self.ranks.gather(found) for pair in part), key=lambda pair: pair[0])


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 3)
