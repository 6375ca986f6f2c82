"""The built-in weights compared with classical inpainting of the same patches, by PSNR over the masked patches.

    pip install opencv-python-headless scipy
    python benchmarks/fills.py sample_images --out benchmarks/results/fills_sample_images.json
    python benchmarks/fills.py photos136/val --name held-out --out benchmarks/results/fills_held_out.json

Each photograph is scaled and cropped to the model's size (or ``--image-size``), and three quarters of its patches
are masked with seed 2, as in ``maecli reconstruct``. All methods fill the masked patches from the visible pixels
only:

- mean: the visible pixels' mean colour;
- linear: linear interpolation between visible pixels (scipy's Delaunay triangulation; outside its hull the nearest);
- telea, navier-stokes: OpenCV's two inpainting methods, each at the best of several radii;
- model: the checkpoint. For a model of normalised patches, the mean and std of each patch are taken from the original,
  and the result says so.

PSNR is computed over the masked patches of each photograph, then averaged over the photographs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from mae.checkpoints import Checkpoint, build_model, load_checkpoint
from mae.data.sources.scan import scan_images
from mae.data.transforms import crop_to, image_to_tensor, normalise
from mae.masking import random_masking
from mae.reconstruction.panels import make_panels, predict

MASK_SEED = 2
MASK_RATIO = 0.75
RADII = (2, 4, 8)
BATCH = 64

Pixels = NDArray[np.uint8]  # (H, W, 3)
Holes = NDArray[np.bool_]  # (H, W), True = removed
Fill = Callable[[Pixels, Holes], NDArray[np.floating]]


def mean_colour(pixels: Pixels, holes: Holes) -> NDArray[np.floating]:
    """The visible pixels' mean everywhere."""
    return np.broadcast_to(pixels[~holes].mean(axis=0), pixels.shape)


def linear(pixels: Pixels, holes: Holes) -> NDArray[np.floating]:
    """Linear interpolation between the visible pixels."""
    places, values = np.argwhere(~holes), pixels[~holes].astype(float)
    wanted = np.argwhere(holes)
    filled = LinearNDInterpolator(places, values)(wanted)
    outside = np.isnan(filled[:, 0])
    filled[outside] = NearestNDInterpolator(places, values)(wanted[outside])
    result = pixels.astype(float)
    result[holes] = filled
    return result


def opencv(method: int, radius: int) -> Fill:
    """One of OpenCV's inpainting methods, which see nothing of the removed pixels."""

    def fill(pixels: Pixels, holes: Holes) -> NDArray[np.floating]:
        blanked = np.where(holes[..., None], 0, pixels).astype(np.uint8)
        return cv2.inpaint(blanked, holes.astype(np.uint8), radius, method).astype(float)

    return fill


FILLS: dict[str, Fill] = {
    "mean": mean_colour,
    "linear": linear,
    **{f"telea {radius}": opencv(cv2.INPAINT_TELEA, radius) for radius in RADII},
    **{f"navier-stokes {radius}": opencv(cv2.INPAINT_NS, radius) for radius in RADII},
}


def psnr(filled: NDArray[np.floating], pixels: Pixels, holes: Holes) -> float:
    """Over the removed pixels, dB."""
    error = np.mean((filled[holes].clip(0, 255) - pixels[holes].astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(float(error), 1e-9))


def frames(sources: list[Path], size: tuple[int, int], in_chans: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each photograph's name and its centre at the model's size, (C, H, W) uint8."""
    found = scan_images(sources).images
    for index in range(len(found)):
        yield str(found.name(index)), image_to_tensor(crop_to(found.load(index, in_chans), size))


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Of the file that a result is about."""
    with checkpoint.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which weights a result is about, and where it was measured."""
    return {
        "weights_sha256": weights_sha256(checkpoint),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"torch": torch.__version__, "opencv": cv2.__version__, "python": platform.python_version()},
    }


def main() -> None:
    """Score every contestant on the given photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, default=Path("builtin"))
    parser.add_argument("--name", default="sample_images", help="what the photographs are called in the result")
    parser.add_argument("--image-size", type=int, help="side in pixels, if not the size of the training")
    parser.add_argument("--no-fills", action="store_true", help="score the model alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    checkpoint = load_checkpoint(options.checkpoint)
    model, _ = build_model(checkpoint, img_size=options.image_size)
    config = model.config
    rows, columns = config.img_size
    noise = torch.rand(1, config.num_patches, generator=torch.Generator().manual_seed(MASK_SEED))
    masking = random_masking(noise, MASK_RATIO)
    patches = masking.mask[..., None].expand(-1, -1, config.patch_dim)
    holes = model.unpatchify(patches)[0, 0].bool().numpy()

    names, images = zip(*frames(options.photographs, (rows, columns), config.in_chans), strict=True)
    scores: dict[str, list[float]] = {"model": []}
    for start in range(0, len(images), BATCH):
        imgs = normalise(torch.stack(images[start : start + BATCH]))
        batch = random_masking(noise.expand(len(imgs), -1), MASK_RATIO)
        panels = make_panels(model, imgs, batch, predict(model, imgs, batch), norm_pix=config.norm_pix_loss)
        scores["model"] += [one.psnr for one in panels]
    for name, fill in ({} if options.no_fills else FILLS).items():
        arrays = [image.permute(1, 2, 0).numpy() for image in images]
        scores[name] = [psnr(fill(array, holes), array, holes) for array in arrays]

    means = {name: sum(values) / len(values) for name, values in scores.items()}
    for name, value in sorted(means.items(), key=lambda item: -item[1]):
        print(f"{name:<18}{value:7.2f} dB")
    result: dict[str, Any] = {
        "name": options.name,
        "photographs": len(names),
        "image_size": [rows, columns],
        "mask_ratio": MASK_RATIO,
        "mask_seed": MASK_SEED,
        "norm_pix_loss": config.norm_pix_loss,
        "psnr_db": means,
    }
    fills = {name: value for name, value in means.items() if name != "model"}
    if fills:
        best = max(fills, key=lambda name: fills[name])
        wins = sum(a > b for a, b in zip(scores["model"], scores[best], strict=True))
        result |= {"best_fill": best, "margin_db": means["model"] - fills[best], "photographs_won": wins}
        print(f"margin over {best}: {result['margin_db']:+.2f} dB; better on {wins} of {len(names)} photographs")
    if options.out:
        result |= provenance(checkpoint)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
