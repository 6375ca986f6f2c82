"""Frozen features of the built-in weights on labelled images, as a result that the model card reads.

    python benchmarks/features.py trashnet256.zip --name TrashNet --out benchmarks/results/features_trashnet.json

What ``maecli evaluate DATA --checkpoint builtin`` does, with the best view of each encoder by its linear probe.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from fills import weights_sha256

import mae
from mae.checkpoints import load_checkpoint
from mae.evaluation.results import Row


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--name", required=True, help="What the images are called in the result.")
    parser.add_argument("--checkpoint", type=Path, default=Path("builtin"))
    parser.add_argument("--probe", action="append", help="Default: knn and linear.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    probes = options.probe or ["knn", "linear"]
    result = mae.evaluate(options.data, checkpoint=[options.checkpoint], probe=probes)
    best: dict[str, Row] = {}
    for row in result.rows:
        if row.subject not in best or value(row) > value(best[row.subject]):
            best[row.subject] = row
    document = {
        "name": options.name,
        "train_images": result.train_images,
        "test_images": result.test_images,
        "classes": len(result.classes),
        "rows": [cells(row) for row in best.values()],
        "weights_sha256": weights_sha256(checkpoint),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document["rows"], indent=1))


def value(row: Row) -> float:
    """By which views of one encoder are ranked: training images that the probe had not seen, where there are some."""
    score = row.scores[-1]
    if score.linear:
        return score.linear.test.value if score.linear.held_out is None else score.linear.held_out
    return max((one.value for one in (score.knn or {}).values()), default=0.0)


def cells(row: Row) -> dict[str, Any]:
    """The accuracies of one kind of features."""
    score = row.scores[-1]
    knn = max((one.value for one in (score.knn or {}).values()), default=None)
    return {
        "subject": row.subject,
        "pool": row.pool,
        "feature_norm": row.feature_norm,
        "knn": knn,
        "linear": score.linear.test.value if score.linear else None,
        "attentive": score.attentive.test.value if score.attentive else None,
    }


if __name__ == "__main__":
    main()
