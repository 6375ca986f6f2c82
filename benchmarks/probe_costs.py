"""What the probes of `maecli evaluate` cost, in seconds and memory.

    python benchmarks/probe_costs.py --out benchmarks/results/probe_costs.json
    python benchmarks/probe_costs.py --data CIFAR --checkpoint RUN --out benchmarks/results/probe_costs_cifar10.json

Without DATA: k-NN, linear and attentive probe on random features (a centre per class, and noise), a tenth of which is
the test set. The patch tokens of the attentive probe lie in a file in float16, as in `evaluate`. With DATA (class
folders in train/ and test/): one `evaluate` without references, whose time is compared with that of its forward passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning import processor
from numpy.typing import NDArray

import mae
from mae.evaluation.attentive import attentive
from mae.evaluation.knn import knn
from mae.evaluation.linear import linear
from mae.io.files import write_atomically


class Stored:
    """Patch tokens in a file."""

    def __init__(self, values: NDArray[np.float16], first: int, last: int) -> None:
        self.values, self.first, self.last = values, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def take(self, rows: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(self.values[rows + self.first])


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoint", default="builtin")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figures = of_evaluate(options) if options.data else of_probes(options)
    document = figures | {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "maecli": mae.__version__},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }
    print(json.dumps(document, indent=1))
    content = json.dumps(document, indent=1).encode() + b"\n"
    write_atomically(options.out, lambda file: file.write(content))


def of_evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """One evaluation whose features are not in the cache."""
    with tempfile.TemporaryDirectory() as cache:
        result = mae.evaluate(
            options.data, checkpoint=options.checkpoint, references=False, probe=("knn", "linear"), cache=cache,
            crop_pct=1.0, precision="fp32",
        )  # fmt: skip
    seconds = result.seconds
    return {
        "images": {"train": result.train_images, "test": result.test_images},
        "forward_seconds": seconds.forward,
        "features_seconds": seconds.features,
        "probes_seconds": seconds.probes,
        "ratio": (seconds.features + seconds.probes) / seconds.forward,
    }


def of_probes(options: argparse.Namespace) -> dict[str, Any]:
    """The three probes on random features."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, options.classes, options.images)
    centres = generator.normal(size=(options.classes, options.width)).astype(np.float32) * 0.1
    split = options.images * 9 // 10
    features = torch.empty(options.images, options.width)
    with tempfile.TemporaryDirectory() as folder:
        shape = (options.images, options.tokens, options.width)
        tokens = np.memmap(Path(folder) / "tokens", dtype=np.float16, mode="w+", shape=shape)
        for rows in np.array_split(np.arange(options.images), 100):
            noise = generator.normal(size=(len(rows), *shape[1:])).astype(np.float32)
            tokens[rows] = noise + centres[labels[rows], None]
            features[rows] = torch.from_numpy(noise.mean(axis=1) * options.tokens**0.5 + centres[labels[rows]])
        train, test, known = features[:split], features[split:], labels[:split]
        stored = Stored(tokens, 0, split), Stored(tokens, split, options.images)
        cpu, seconds = torch.device("cpu"), {}
        probes = {
            "knn": lambda: knn(train, torch.from_numpy(known), test, options.classes, ks=(10, 20, 100, 200)),
            "linear": lambda: linear(train, known, test, options.classes),
            "attentive": lambda: attentive(stored[0], known, stored[1], options.classes, device=cpu),
        }
        for name, probe in probes.items():
            began = time.perf_counter()
            probe()
            seconds[name] = time.perf_counter() - began
            print(name, f"{seconds[name]:.0f} s", flush=True)
    sizes = {name: getattr(options, name) for name in ("images", "width", "tokens", "classes")}
    return {**sizes, "seconds": seconds}


if __name__ == "__main__":
    main()
