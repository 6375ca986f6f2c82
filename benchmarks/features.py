"""Frozen features on labelled images, compared with an untrained encoder and pixels, for the model card.

    python benchmarks/features.py trashnet256.zip --name TrashNet --out benchmarks/results/features_trashnet.json
    python benchmarks/features.py photos136 --photos136 --name flowers --out benchmarks/results/features_flowers.json
    python benchmarks/features.py cifar10_jpg.zip --each 500 500 --name CIFAR-10 \
        --out benchmarks/results/features_cifar10.json

What ``maecli evaluate DATA --checkpoint builtin`` does. For each encoder, the view is
reported whose linear probe is best on held-out training images, and k-NN with 20 neighbours. Nothing is chosen by
test images.

``--seeds 3`` repeats all with seeds 0, 1, 2 (another split where DATA has none, other untrained weights): accuracies
are means, ``std`` is their std. ``--each TRAIN TEST`` uses at most this many images of each class, the first by
name. ``--photos136`` reads the flowers of that collection, whose class is in the number at the end of a file's name.
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import re
import shutil
import statistics
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from fills import weights_sha256

import mae
from mae.checkpoints import load_checkpoint
from mae.evaluation.config import PROBES
from mae.evaluation.results import EvaluateResult, Row, nearest_k

# The collection numbers its flowers class by class: four fifths of each, then the other fifths. A class begins at ...
FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
BEGINNINGS = {"train": (0, 506, 1224, 1736, 2293), "test": (2931, 3058, 3238, 3367, 3507)}


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", required=True, help="What the images are called in the result.")
    parser.add_argument("--checkpoint", type=Path, default=Path("builtin"))
    parser.add_argument("--probe", action="append", choices=PROBES, help="Default: all.")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--each", type=int, nargs=2, metavar=("TRAIN", "TEST"))
    parser.add_argument("--photos136", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    probes = options.probe or PROBES
    with tempfile.TemporaryDirectory() as folder:
        data = options.data
        if options.photos136:
            data = flowers(data, Path(folder) / "flowers")
        elif options.each:
            data = first_of_each(data, dict(zip(("train", "test"), options.each, strict=True)), Path(folder) / "some")
        results = [
            mae.evaluate(
                data, checkpoint=[options.checkpoint], probe=probes, seed=seed, cache=Path(folder) / "features"
            )
            for seed in range(options.seeds)
        ]
    document = {
        "name": options.name,
        "train_images": results[0].train_images,
        "test_images": results[0].test_images,
        "classes": len(results[0].classes),
        "seeds": options.seeds,
        "each": options.each,
        "knn_k": results[0].shown_k,
        "rows": list(rows(results)),
        "seconds": [
            {"forward": one.seconds.forward, "features": one.seconds.features, "probes": one.seconds.probes}
            for one in results
        ],
        "weights_sha256": weights_sha256(checkpoint),
        "epoch": checkpoint.epoch,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document, indent=1))


def flowers(photos: Path, out: Path) -> Path:
    """Class folders of the flowers among the collection's photographs."""
    for path in sorted(photos.glob("*/flowers/*")):
        number = int(re.fullmatch(r".*-(\d+)", path.stem)[1])  # type: ignore[index]
        part = "train" if number < BEGINNINGS["test"][0] else "test"
        name = FLOWERS[sum(number >= begin for begin in BEGINNINGS[part]) - 1]
        place = out / part / name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return out


def first_of_each(archive: Path, most: dict[str, int], out: Path) -> Path:
    """The first images of each class in an archive of train/CLASS and test/CLASS."""
    taken: collections.Counter[tuple[str, str]] = collections.Counter()
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            part, *inner = name.split("/")
            if part in most and len(inner) == 2 and inner[1] and taken[part, inner[0]] < most[part]:
                taken[part, inner[0]] += 1
                file.extract(name, out)
    return out


def rows(results: list[EvaluateResult]) -> Iterator[dict[str, Any]]:
    """The best view of each kind of features; accuracies are means over the seeds."""
    for subject in dict.fromkeys(row.subject for row in results[0].rows):
        mine = [[row for row in one.rows if row.subject == subject] for one in results]
        best = max(mine[0], key=held_out)
        wanted = (best.pool, best.feature_norm)
        same = [next(row for row in one if (row.pool, row.feature_norm) == wanted) for one in mine]
        found = {"knn": [knn(row) for row in same], "linear": [linear(row) for row in same]}
        found["attentive"] = [next((attentive(row) for row in one if row.pool == "patches"), None) for one in mine]
        known = {probe: [value for value in values if value is not None] for probe, values in found.items()}
        yield {
            "subject": best.subject if best.kind != "checkpoint" else "the encoder",
            "pool": best.pool,
            "feature_norm": best.feature_norm,
            **{probe: mean_of(values) for probe, values in known.items()},
            "std": {probe: statistics.stdev(values) for probe, values in known.items() if len(values) > 1},
            "rank_me": best.rank_me,
        }


def held_out(row: Row) -> float:
    """By which views are ranked: training images that the linear probe had not seen."""
    linear = row.scores[-1].linear
    return -1.0 if linear is None or linear.held_out is None else linear.held_out


def knn(row: Row) -> float | None:
    """Of 20 neighbours."""
    found = row.scores[-1].knn
    return found[nearest_k(found)].value if found else None


def linear(row: Row) -> float | None:
    """The linear probe's accuracy."""
    found = row.scores[-1].linear
    return found.test.value if found else None


def attentive(row: Row) -> float | None:
    """The attentive probe's accuracy."""
    found = row.scores[-1].attentive
    return found.test.value if found else None


def mean_of(values: Iterable[float]) -> float | None:
    """None of nothing."""
    values = list(values)
    return statistics.fmean(values) if values else None


if __name__ == "__main__":
    main()
