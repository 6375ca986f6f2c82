"""Image sizes that a model was not trained on: whole images of any shape, and larger ones, compared with a linear fill.

    pip install opencv-python-headless scipy
    python benchmarks/frames.py sample_images --checkpoint builtin --out benchmarks/results/frames_sample_images.json

PSNR over masked patches (three quarters, seed 2) depends on the visible part of a photograph, so sizes are compared
by the margin over linear interpolation of the same patches. Positions in a grid other than that of training are
either those of the formula (0, 1, 2, ... patches) or scaled to the range of the training grid.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fills import MASK_RATIO, MASK_SEED, Holes, Pixels, provenance, psnr
from numpy.typing import NDArray
from PIL import Image
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import Delaunay

from mae.checkpoints import Checkpoint, build_model, load_checkpoint
from mae.config import format_size
from mae.data.sources.scan import scan_images
from mae.data.transforms import crop_to, image_to_tensor, normalise, whole_size
from mae.mae import MaskedAutoencoder
from mae.masking import random_masking
from mae.reconstruction.panels import make_panels, predict

Frame = tuple[int, int]


def main() -> None:
    """Score every frame on the given photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="+")
    parser.add_argument("--checkpoint", type=Path, default=Path("builtin"))
    parser.add_argument("--name", default="sample_images", help="What the photographs are called in the result.")
    parser.add_argument("--larger", type=int, default=224, help="Side of the larger frame.")
    parser.add_argument("--every", type=int, default=1, help="Take every n-th photograph.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.checkpoint)
    found = scan_images(options.photographs).images
    images = [found.load(index, checkpoint.config.in_chans) for index in range(0, len(found), options.every)]
    native, larger = checkpoint.config.img_size, (options.larger, options.larger)
    side = checkpoint.config.patch_size
    cases = [
        (f"centre, {format_size(native)}", lambda image: native, False),
        (f"whole image, area of {format_size(native)}", lambda image: whole_size(image, native, side), True),
        (f"whole image, shorter side {native[0]}", lambda image: shorter_side(image, native[0], side), True),
        (f"centre, {format_size(larger)}", lambda image: larger, False),
        (f"whole image, area of {format_size(larger)}", lambda image: whole_size(image, larger, side), True),
    ]
    frames: list[dict[str, Any]] = []
    for name, frame_of, whole in cases:
        framed = [framing(image, frame_of(image), whole) for image in images]
        fills = statistics.fmean(linear_psnr(image, side) for image in framed)
        for positions in ("formula", "scaled"):
            if positions == "scaled" and all(image.size[::-1] == native for image in framed):
                continue
            model = statistics.fmean(model_psnr(image, checkpoint, positions) for image in framed)
            frames.append({"frame": name, "positions": positions, "psnr_db": model, "linear_db": fills})
            print(f"{name:<34}{positions:<9}{model:7.2f} dB, linear {fills:6.2f}: {model - fills:+.2f}", flush=True)
    if options.out:
        result = {"name": options.name, "photographs": len(images), "frames": frames, **provenance(checkpoint)}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def framing(image: Image.Image, frame: Frame, whole: bool) -> Image.Image:
    """The whole image, its shape as near as patches allow, or its centre."""
    return image.resize(frame[::-1], Image.Resampling.BICUBIC) if whole else crop_to(image, frame)


def shorter_side(image: Image.Image, side: int, patch_size: int) -> Frame:
    """A frame of the image's shape whose shorter side is the training's."""
    scale = side / min(image.size)
    rows, columns = (max(1, round(length * scale / patch_size)) * patch_size for length in (image.height, image.width))
    return rows, columns


def model_psnr(image: Image.Image, checkpoint: Checkpoint, positions: str) -> float:
    """Of one image's masked patches."""
    model = model_for(checkpoint, image.size[::-1], positions)
    noise = torch.rand(1, model.config.num_patches, generator=torch.Generator().manual_seed(MASK_SEED))
    masking = random_masking(noise, MASK_RATIO)
    imgs = normalise(image_to_tensor(image))[None]
    (panels,) = make_panels(model, imgs, masking, predict(model, imgs, masking), norm_pix=model.config.norm_pix_loss)
    return panels.psnr


_MODELS: dict[tuple[Frame, str], MaskedAutoencoder] = {}


def model_for(checkpoint: Checkpoint, frame: Frame, positions: str) -> MaskedAutoencoder:
    """The model with position tables for a frame."""
    if (frame, positions) not in _MODELS:
        _MODELS[frame, positions] = build_model(checkpoint, img_size=frame, scaled_positions=positions == "scaled")[0]
    return _MODELS[frame, positions]


def linear_psnr(image: Image.Image, side: int) -> float:
    """Of the linear fill of the same holes."""
    pixels = np.asarray(image.convert("RGB"))
    grid = (image.height // side, image.width // side)
    noise = torch.rand(1, grid[0] * grid[1], generator=torch.Generator().manual_seed(MASK_SEED))
    removed = random_masking(noise, MASK_RATIO).mask.reshape(grid).bool().numpy()
    holes = removed.repeat(side, 0).repeat(side, 1)
    return psnr(linear_fill(pixels, holes), pixels, holes)


def linear_fill(pixels: Pixels, holes: Holes) -> NDArray[np.floating]:
    """As ``fills.linear``, with the triangles of a mask kept for the next image."""
    triangles = triangulation(holes.tobytes(), holes.shape)
    places, wanted, values = np.argwhere(~holes), np.argwhere(holes), pixels[~holes].astype(float)
    filled = LinearNDInterpolator(triangles, values)(wanted)
    outside = np.isnan(filled[:, 0])
    filled[outside] = NearestNDInterpolator(places, values)(wanted[outside])
    result = pixels.astype(float)
    result[holes] = filled
    return result


@lru_cache(maxsize=64)
def triangulation(content: bytes, shape: tuple[int, ...]) -> Delaunay:
    """Of a mask's visible pixels."""
    return Delaunay(np.argwhere(~np.frombuffer(content, dtype=bool).reshape(shape)))


if __name__ == "__main__":
    main()
