"""The images on the page of ``evaluate``: nearest neighbours, and a plot of the features."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.data.eval_loader import EvalDataset
from mae.data.transforms import tensor_to_image
from mae.evaluation.knn import knn
from mae.evaluation.splits import by_label
from mae.system.seeding import stream

STRIPS, NEIGHBOURS = 12, 5
MOST_POINTS = 1500
_SIDE, _JPEG_QUALITY = 96, 80


class Thumbnail(NamedTuple):
    """A thumbnail of an image, and its class."""

    name: str
    label: int
    data_uri: str
    size: tuple[int, int]


class Strip(NamedTuple):
    """A test image and its most similar training images, nearest first."""

    query: Thumbnail
    neighbours: tuple[Thumbnail, ...]


class Point(NamedTuple):
    """A test image in the plot of two principal components, each coordinate from 0 to 1."""

    x: float
    y: float
    label: int


class Gallery(NamedTuple):
    """Strips and points of one view.

    Attributes:
        explained: Fraction of the variance along each of the two axes.
    """

    strips: tuple[Strip, ...]
    points: tuple[Point, ...]
    explained: tuple[float, float]


def make_gallery(
    dataset: EvalDataset,
    train: Tensor,
    train_images: NDArray[np.int64],
    train_labels: NDArray[np.int64],
    test: Tensor,
    test_images: NDArray[np.int64],
    test_labels: NDArray[np.int64],
    *,
    seed: int,
) -> Gallery:
    """Choose test images of every class, find their neighbours, and project the features on two principal components.

    Args:
        dataset: Dataset of the images.
        train, test: Features, (N, D) and (M, D).
        train_images, test_images: Numbers of the images in the dataset, (N,) and (M,).
        train_labels, test_labels: Classes of the images, (N,) and (M,).
        seed: Seed of the choice of test images.
    """
    chosen = _of_each_class(test_labels, STRIPS, seed)
    found = knn(
        train, torch.from_numpy(train_labels), test[chosen], int(train_labels.max()) + 1, ks=(1,), strip=NEIGHBOURS
    )
    strips = []
    for row, nearest in zip(chosen, found.nearest, strict=True):
        query = _thumbnail(dataset, int(test_images[row]), int(test_labels[row]))
        others = [_thumbnail(dataset, int(train_images[one]), int(train_labels[one])) for one in nearest]
        if query is not None:
            strips.append(Strip(query, tuple(one for one in others if one is not None)))
    points, explained = _plane(test, test_labels, seed)
    return Gallery(tuple(strips), points, explained)


def _of_each_class(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Random indices, one of each class in turn, until there are ``most``."""
    order = torch.randperm(len(labels), generator=stream(seed, "strips")).numpy()
    turn = np.zeros(len(labels), dtype=np.int64)
    for own in by_label(labels[order]):
        turn[own] = np.arange(len(own))
    chosen: NDArray[np.int64] = order[np.argsort(turn, kind="stable")][:most]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _thumbnail(dataset: EvalDataset, index: int, label: int) -> Thumbnail | None:
    """Decode an image and encode it again, without the file's metadata; None if it is unreadable."""
    pixels = dataset[index].image
    if pixels is None:
        return None
    # Two channels are grey and alpha, four are RGB and alpha; alpha is dropped.
    image = tensor_to_image(pixels[: 3 if len(pixels) >= 3 else 1].float() / 255)
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    return Thumbnail(str(dataset.source.name(index)), label, uri, image.size)


def _plane(features: Tensor, labels: NDArray[np.int64], seed: int) -> tuple[tuple[Point, ...], tuple[float, float]]:
    """Project a limited number of test images on the first two principal components."""
    rows = torch.randperm(len(features), generator=stream(seed, "points"))[:MOST_POINTS].sort().values
    some = features[rows].double()
    some = some - some.mean(dim=0)
    values, axes = torch.linalg.eigh(some.T @ some)
    total = float(values.sum().clamp_min(1e-30))
    places = some @ axes[:, -2:].flip(1)  # (n, 2), the first component first
    low, high = places.amin(dim=0), places.amax(dim=0)
    places = (places - low) / (high - low).clamp_min(1e-12)
    return (
        tuple(Point(float(x), float(y), int(labels[row])) for (x, y), row in zip(places, rows.tolist(), strict=True)),
        (float(values[-1]) / total, float(values[-2]) / total if len(values) > 1 else 0.0),
    )
