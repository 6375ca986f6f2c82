"""Compares learning rates and crops of `maecli linprobe`: `python benchmarks/linear_probe.py TRAIN --out rates.json`.

TRAIN is class folders of training images, of which 30 % (stratified, seed 0) judge the recipes; test images are not
used. The frozen encoder's features of ``--views`` random crops of each image are computed once, and every head is
trained on them: epoch e sees view e modulo their number, in batches of 64, with the command's head (batch norm without
parameters, linear), optimiser (LARS) and schedule (warm-up for a tenth, cosine to 0), mean of the patch tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from learning import augment, normalised, processor, read
from torch import Tensor, nn

import mae
from mae.io.files import write_atomically
from mae.models.classifier import BATCH_NORM_EPS
from mae.training.lars import LARS
from mae.training.tasks.linprobe import HEAD_STD

BATCH = 64
HELD_OUT = 0.3
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EPOCHS = (15, 50)


def main() -> None:
    """Compute the features, train the heads, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("--checkpoint", default="builtin")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--smallest-crop", type=float, nargs="+", default=[0.08, 0.3], help="Fractions of the area.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = mae.from_pretrained(options.checkpoint, img_size=options.image_size).eval()
    images, labels = read(options.train, options.image_size * 2)  # crops are taken from twice the model's size
    judging = held_out(labels)
    learning = ~judging
    truth = labels[judging]
    plain = F.interpolate(normalised(images[judging]), options.image_size, mode="bicubic", antialias=True)
    test = pooled(model, plain)
    rows = []
    for smallest in options.smallest_crop:
        generator = torch.Generator().manual_seed(0)
        views = []
        for _ in range(options.views):
            cut = [augment(part, smallest, options.image_size * 2, generator) for part in images[learning].split(BATCH)]
            scaled = [F.interpolate(part, options.image_size, mode="bicubic", antialias=True) for part in cut]
            views.append(torch.cat([pooled(model, part) for part in scaled]))
        for epochs in EPOCHS:
            for rate in RATES:
                right, loss = probed(views, labels[learning], test, truth, rate, epochs)
                rows.append({"smallest_crop": smallest, "epochs": epochs, "lr": rate, "accuracy": right, "loss": loss})
                print(rows[-1], flush=True)
    document = {
        "data": options.train.parent.name,
        "checkpoint": str(options.checkpoint),
        "images": {"training": int(learning.sum()), "held out": int(judging.sum())},
        "views": options.views,
        "rows": rows,
        "machine": processor(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "maecli": mae.__version__},
    }
    content = json.dumps(document, indent=1).encode() + b"\n"
    write_atomically(options.out, lambda file: file.write(content))


def held_out(labels: Tensor) -> Tensor:
    """(N,) bool: 30 % of every class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        chosen[members[order[: round(HELD_OUT * len(members))]]] = True
    return chosen


@torch.no_grad()
def pooled(model: Any, pixels: Tensor) -> Tensor:
    """(N, 3, S, S) normalised -> (N, D): mean of the patch tokens after the encoder's norm."""
    return torch.cat([model.encode(part)[:, 1:].mean(dim=1) for part in pixels.split(BATCH)])


def probed(
    views: list[Tensor], labels: Tensor, test: Tensor, truth: Tensor, rate: float, epochs: int
) -> tuple[float, float]:
    """Accuracy and loss on the held-out images of a head that was trained with this rate."""
    torch.manual_seed(0)
    linear = nn.Linear(views[0].shape[1], int(labels.max()) + 1)
    nn.init.trunc_normal_(linear.weight, std=HEAD_STD)
    nn.init.zeros_(linear.bias)
    head = nn.Sequential(nn.BatchNorm1d(views[0].shape[1], affine=False, eps=BATCH_NORM_EPS), linear)
    optimizer, warmup, per_epoch = LARS(head.parameters(), rate), epochs / 10, len(labels) // BATCH
    for epoch in range(epochs):
        order = torch.randperm(len(labels))
        for number, rows in enumerate(order[: per_epoch * BATCH].split(BATCH)):
            at = epoch + number / per_epoch
            falling = 0.5 * (1 + math.cos(math.pi * (at - warmup) / (epochs - warmup)))
            optimizer.param_groups[0]["lr"] = rate * (at / warmup if at < warmup else falling)
            F.cross_entropy(head(views[epoch % len(views)][rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
    head.eval()
    with torch.no_grad():
        logits = head(test)
    return float((logits.argmax(dim=1) == truth).float().mean()), float(F.cross_entropy(logits, truth))


if __name__ == "__main__":
    main()
