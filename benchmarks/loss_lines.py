"""Losses of simple predictions without a network, to compare a training loss with.

    python benchmarks/loss_lines.py [IMAGES ...] [--image-size 224] [--patch-size 16] [--out FILE]

Masked patches are predicted by rules: zero, the mean of the visible pixels, the mean or the pixels of the nearest
visible patch; and, with knowledge that no model has, each masked patch's own mean or its best fit by a linear
gradient. The loss is the training loss for both targets, over all images with one mask each.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mae
from mae.data.sources.scan import scan_images
from mae.data.transforms import crop_to, image_to_tensor, normalise
from mae.mae import patch_statistics
from mae.masking import random_masking
from mae.patch_embed import patchify
from mae.system.seeding import stream

MASK_RATIO = 0.75


def read(sources: list[Path], size: int) -> Tensor:
    """All images, cut to a square: (N, 3, size, size), normalised."""
    found = scan_images(sources).images
    return normalise(torch.stack([image_to_tensor(crop_to(found.load(i, 3), (size, size))) for i in range(len(found))]))


def nearest_visible(mask: Tensor, grid: int) -> Tensor:
    """(B, L): for every patch the number of the visible one that is nearest to it, itself where it is visible."""
    place = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"), -1).reshape(-1, 2)
    distance = torch.cdist(place.float(), place.float())
    return (distance + 1e6 * mask.unsqueeze(1)).argmin(dim=2)


def slopes(patches: Tensor, side: int) -> Tensor:
    """Each patch's least-squares fit by a plane, per channel."""
    axis = torch.linspace(-1, 1, side)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    basis = torch.stack([torch.ones(side, side), rows, columns], -1).reshape(side * side, 3)
    colours = patches.unflatten(-1, (side * side, 3))  # (B, L, p * p, C)
    fit: Tensor = basis @ (torch.linalg.pinv(basis) @ colours)
    return fit.flatten(-2)


def lines(imgs: Tensor, side: int) -> dict[str, dict[str, float]]:
    """Loss by rule and target."""
    patches = patchify(imgs, side)
    batch, count = patches.shape[:2]
    masking = random_masking(torch.rand(batch, count, generator=stream(2, "mask")), MASK_RATIO)
    removed = masking.mask
    seen = 1 - removed
    by_colour = patches.unflatten(-1, (side * side, 3))
    visible_mean = (by_colour.mean(2) * seen.unsqueeze(-1)).sum(1, keepdim=True) / seen.sum(1)[:, None, None]
    nearest = nearest_visible(removed, imgs.shape[-1] // side)
    neighbour = patches.gather(1, nearest.unsqueeze(-1).expand_as(patches))
    own_colours = by_colour.mean(2)
    neighbour_colours = own_colours.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 3))

    def flat(colours: Tensor) -> Tensor:
        return colours.repeat(1, 1, side * side).expand(-1, count, -1)

    rules = {
        "zero": torch.zeros_like(patches),
        "mean colour of what is visible": flat(visible_mean),
        "nearest visible patch's mean colour": flat(neighbour_colours),
        "nearest visible patch's pixels": neighbour,
        "own mean colour (an oracle)": flat(own_colours),
        "own mean colour and slope (an oracle)": slopes(patches, side),
    }
    mean, std = patch_statistics(patches)
    target = (patches - mean) / std
    neighbour_mean, neighbour_deviation = patch_statistics(neighbour)
    normal = {
        "zero": torch.zeros_like(patches),
        "nearest visible patch's pixels": (neighbour - neighbour_mean) / neighbour_deviation,
        "own mean colour (an oracle)": (flat(own_colours) - mean) / std,
        "own mean colour and slope (an oracle)": (slopes(patches, side) - mean) / std,
    }

    def loss(prediction: Tensor, wanted: Tensor) -> float:
        return float(((prediction - wanted).square().mean(-1) * removed).sum() / removed.sum())

    return {
        rule: {"raw": loss(prediction, patches)}
        | ({"normalised": loss(normal[rule], target)} if rule in normal else {})
        for rule, prediction in rules.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="*", default=[Path("sample_images")])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    imgs = read(args.images, args.image_size)
    rows = lines(imgs, args.patch_size)
    print(f"{len(imgs)} images, {args.image_size} px, patches of {args.patch_size}, {MASK_RATIO:.0%} removed")
    print(f"{'prediction of a masked patch':40}{'raw':>8}{'normalised':>12}")
    for rule, row in rows.items():
        print(f"{rule:40}{row['raw']:8.3f}" + (f"{row['normalised']:12.3f}" if "normalised" in row else ""))
    if args.out:
        report: dict[str, Any] = {
            "images": len(imgs), "image_size": args.image_size, "patch_size": args.patch_size,
            "mask_ratio": MASK_RATIO, "rows": rows,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "maecli": mae.__version__},
        }  # fmt: skip
        args.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
