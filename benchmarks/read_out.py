"""What frozen features know: k-nearest neighbours and a linear read-out, beside an untrained encoder and pixels.

    python benchmarks/read_out.py --checkpoint run/checkpoint-last.pth --train DATA/train --test DATA/test

Labels are the names of the folders that pictures lie in; no label is used but here. A folder in a zip file is written
behind the file's name: ``pictures.zip/train``. Every contestant gets the same pictures:

- the checkpoint's encoder, frozen, without a mask: the class token, and the mean of the patch tokens, both behind the
  encoder's last norm (the official linear probe reads the class token, its fine-tuning the mean);
- the same encoder with fresh weights, once for each seed; seed 0 is what ``maecli pretrain --seed 0`` starts from;
- the pixels, the pixels at half the size, and the pixels' first principal components, as many as the encoder is wide.

k-nearest neighbours: the 20 nearest training pictures by cosine vote with weights exp(similarity / 0.07), once on
features as they are and once standardised. Linear: multinomial logistic regression on standardised features, its L2
penalty chosen on a tenth of the training pictures. Standardised is less the training mean and over its deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mae
from mae.data.geometry import crop_to
from mae.data.normalise import normalise, picture_to_tensor
from mae.data.scan import scan_pictures
from mae.device import autocast, resolve_device, resolve_precision
from mae.seeding import seeded, stream, stream_seed

NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
BATCH = 200


def read_pictures(source: Path, size: tuple[int, int], in_chans: int, each: int) -> tuple[Tensor, list[str]]:
    """Pictures (N, C, H, W) uint8 and their labels; ``each`` from every folder, spread evenly, or all for 0."""
    file = next((part for part in (source, *source.parents) if part.is_file()), source)
    found = scan_pictures([file]).pictures
    by_label: dict[str, list[int]] = {}
    for index in range(len(found)):
        name = found.name(index)
        if name.is_relative_to(source):
            by_label.setdefault(name.parent.name, []).append(index)
    if len(by_label) < 2:
        raise SystemExit(f"{source}: labels are folders' names, and there are {len(by_label)} folders with pictures")
    chosen = [
        (label, numbers[place * len(numbers) // count])
        for label, numbers in sorted(by_label.items())
        for count in [min(each, len(numbers)) if each else len(numbers)]
        for place in range(count)
    ]
    pictures = [picture_to_tensor(crop_to(found.load(index, in_chans), size)) for _, index in chosen]
    return torch.stack(pictures), [label for label, _ in chosen]


def encoder_features(
    model: mae.MaskedAutoencoder, pictures: Tensor, device: torch.device, precision: str
) -> dict[str, Tensor]:
    """Two views of the unmasked encoder's output, each (N, D) float32."""
    model.to(device).eval()
    views: dict[str, list[Tensor]] = {"class token": [], "mean of patches": []}
    with torch.inference_mode(), autocast(device, precision):
        for batch in pictures.split(BATCH):
            tokens = model.encode(normalise(batch.to(device))).float().cpu()
            views["class token"].append(tokens[:, 0])
            views["mean of patches"].append(tokens[:, 1:].mean(dim=1))
    return {name: torch.cat(parts) for name, parts in views.items()}


def pixel_features(train: Tensor, test: Tensor, components: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Three baselines that no network made: (train, test) features by name."""
    whole = [normalise(part) for part in (train, test)]
    half = [F.avg_pool2d(part, 2) for part in whole]
    flat = {"pixels": whole, "pixels, half the size": half}
    features = {name: (parts[0].flatten(1), parts[1].flatten(1)) for name, parts in flat.items()}
    first, second = features["pixels"]
    mean = first.mean(dim=0)
    values, axes = torch.linalg.eigh((first - mean).T @ (first - mean) / len(first))
    axes = axes[:, -components:] / values[-components:].clamp_min(1e-12).sqrt()
    features[f"pixels, {axes.shape[1]} whitened components"] = (first - mean) @ axes, (second - mean) @ axes
    return features


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both less the training mean, over the training deviation."""
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp_min(1e-6)
    return (train - mean) / deviation, (test - mean) / deviation


def knn_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Share of test pictures that their neighbours name rightly."""
    train, test, classes = F.normalize(train, dim=1), F.normalize(test, dim=1), int(labels.max()) + 1
    right = 0
    for batch, wanted in zip(test.split(500), truth.split(500), strict=True):
        similarity, nearest = (batch @ train.T).topk(min(NEIGHBOURS, len(train)), dim=1)
        weights = ((similarity - similarity[:, :1]) / TEMPERATURE).exp()  # less the highest: no overflow, same vote
        votes = torch.zeros(len(batch), classes).scatter_add_(1, labels[nearest], weights)
        right += int((votes.argmax(dim=1) == wanted).sum())
    return right / len(test)


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> tuple[float, float]:
    """Accuracy of logistic regression on standardised features, and the penalty that a tenth of ``train`` chose."""
    order = torch.randperm(len(train), generator=stream(0, "held out"))
    held, kept = order[: len(order) // 10], order[len(order) // 10 :]
    tried = [
        (_accuracy(_fit(train[kept], labels[kept], penalty), train[held], labels[held]), penalty)
        for penalty in PENALTIES
    ]
    penalty = max(tried)[1]
    return _accuracy(_fit(train, labels, penalty), test, truth), penalty


def _fit(features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    classes = int(labels.max()) + 1
    weight = torch.zeros(features.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def _accuracy(fitted: tuple[Tensor, Tensor], features: Tensor, truth: Tensor) -> float:
    weight, bias = fitted
    return float(((features @ weight + bias).argmax(dim=1) == truth).float().mean())


def score(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> dict[str, float]:
    """All read-outs of one set of features."""
    train_standard, test_standard = standardised(train, test)
    linear, penalty = linear_accuracy(train_standard, labels, test_standard, truth)
    return {
        "dimensions": train.shape[1],
        "knn": knn_accuracy(train, labels, test, truth),
        "knn_standardised": knn_accuracy(train_standard, labels, test_standard, truth),
        "linear": linear,
        "linear_penalty": penalty,
    }


def measure(args: argparse.Namespace, show: Callable[[str, dict[str, float]], None]) -> dict[str, Any]:
    """Read the pictures and score every contestant."""
    device = resolve_device(args.device)
    precision = resolve_precision(args.precision, device)
    trained = mae.from_pretrained(args.checkpoint)
    config = trained.config
    train, names = read_pictures(args.train, config.img_size, config.in_chans, args.train_each)
    test, test_names = read_pictures(args.test, config.img_size, config.in_chans, args.test_each)
    classes = sorted(set(names))
    if unknown := set(test_names) - set(classes):
        raise SystemExit(f"{args.test}: no training picture has the label {min(unknown)}")
    labels, truth = (torch.tensor([classes.index(name) for name in part]) for part in (names, test_names))
    print(f"{len(train):,} training and {len(test):,} test pictures, {len(classes)} classes; {device}, {precision}")
    rows: dict[str, dict[str, float]] = {}

    def add(name: str, first: Tensor, second: Tensor) -> None:
        rows[name] = score(first, labels, second, truth)
        show(name, rows[name])

    def add_model(name: str, model: mae.MaskedAutoencoder) -> None:
        parts = [encoder_features(model, pictures, device, precision) for pictures in (train, test)]
        for view in parts[0]:
            add(f"{name}, {view}", parts[0][view], parts[1][view])

    add_model("trained", trained)
    for seed in range(args.untrained):
        with seeded(stream_seed(seed, "weights")):
            fresh = mae.create_model(config)
        add_model(f"untrained, seed {seed}", fresh)
    for name, (first, second) in pixel_features(train, test, config.embed_dim).items():
        add(name, first, second)
    return {
        "pictures": {"train": len(train), "test": len(test), "classes": len(classes)},
        "precision": precision,
        "rows": rows,
    }


def machine() -> dict[str, Any]:
    """What it was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "system": platform.system()}


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="Weights with a decoder, as pretrain writes them."
    )
    parser.add_argument("--train", type=Path, required=True, help="A folder of class folders, in a zip file or not.")
    parser.add_argument("--test", type=Path, required=True, help="The same, of pictures to be named.")
    parser.add_argument("--train-each", type=int, default=0, help="Training pictures of each class; 0 for all.")
    parser.add_argument("--test-each", type=int, default=0, help="Test pictures of each class; 0 for all.")
    parser.add_argument("--untrained", type=int, default=3, help="How many fresh encoders to compare with.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="Of the encoder's matrix products; as in pretrain.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/read_out.json"))
    args = parser.parse_args()

    def show(name: str, row: dict[str, float]) -> None:
        figures = "".join(f"{100 * row[key]:10.2f}" for key in ("knn", "knn_standardised", "linear"))
        print(f"{name:42}{int(row['dimensions']):7}{figures}", flush=True)

    print(f"{'features':42}{'numbers':>7}{'k-NN %':>10}{'stand. %':>10}{'linear %':>10}")
    started = time.process_time()
    report = measure(args, show)
    report = {
        # Without the folders of the machine that it ran on.
        "command": f"python benchmarks/read_out.py --checkpoint {args.checkpoint.name} --train {_short(args.train)} "
        f"--test {_short(args.test)} --train-each {args.train_each} --test-each {args.test_each} "
        f"--untrained {args.untrained}",
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "maecli": mae.__version__},
        "cpu_seconds": round(time.process_time() - started),
        **report,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.out}")


def _short(source: Path) -> str:
    return "/".join(source.parts[-2:])


if __name__ == "__main__":
    main()
