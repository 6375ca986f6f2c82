"""Images/s that one core augments, with the official pipeline, torchvision v2 and maecli.

    python benchmarks/data_path.py [--rounds 8] [--out benchmarks/results/data_path.json]

The sample photographs are saved as JPEGs (quality 90, colour at half resolution), with a longer side of 500 pixels and
enlarged to 2000 pixels: with fine detail and noise, so that the files are as large as those of a camera, with half
of both, and smooth. The larger a file, the more time all pipelines need for entropy decoding. Every pipeline starts
with the file and takes the same crops. The official one ends with normalised floats; maecli and v2 end with 8-bit
pixels, which are normalised as a batch on the model's device ("+ floats" includes this). Time is CPU time of one
thread; the pipelines take turns, and ratios are to the official pipeline in the same round.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from mae.data.augment import Augmentation
from mae.data.crop import Box, draw_box
from mae.data.decoding.jpeg import resolve_decoder
from mae.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from mae.system.seeding import derive_seed

SIZE = (224, 224)
SCALE = (0.2, 1.0)
BATCH = 32
# By name: the longer side, and how much detail and noise an enlarged image gets.
SETS = {
    "500": (500, 0.0, 0.0),
    "2000": (2000, 0.5, 2.0),
    "2000 lighter": (2000, 0.25, 1.0),
    "2000 smooth": (2000, 0.0, 0.0),
}
SAMPLES = Path(__file__).resolve().parent.parent / "sample_images"


def make_photographs(folder: Path, name: str) -> list[Path]:
    """Save the sample photographs as one of ``SETS``."""
    side, detail, noise = SETS[name]
    paths = []
    for source in sorted(SAMPLES.glob("*.jpg")):
        photo = Image.open(source).convert("RGB")
        factor = side / max(photo.size)
        size = round(photo.width * factor), round(photo.height * factor)
        large = photo.resize(size, Image.Resampling.LANCZOS)
        paths.append(folder / f"{name} {source.name}")
        _with_detail(large, photo, detail, noise).save(paths[-1], quality=90, subsampling="4:2:0")
    return paths


def _with_detail(large: Image.Image, photo: Image.Image, share: float, std: float) -> Image.Image:
    """An enlarged photograph has no detail of its own: add the small one's, repeated, and a sensor's noise."""
    detail = np.asarray(photo, float) - np.asarray(photo.filter(ImageFilter.GaussianBlur(2)), float)
    detail = np.concatenate([detail, detail[::-1]])
    detail = np.concatenate([detail, detail[:, ::-1]], axis=1)
    repeats = math.ceil(large.height / detail.shape[0]), math.ceil(large.width / detail.shape[1]), 1
    noise = np.random.default_rng(0).normal(0, std, (large.height, large.width, 1))
    pixels = np.asarray(large, float) + share * np.tile(detail, repeats)[: large.height, : large.width] + noise
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def official_crop(path: Path, box: Box) -> Image.Image:
    """Decode all of it, crop, resize: what the official pipeline's first transform does."""
    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    top, left, height, width = (int(side) for side in box)
    interpolation = transforms.InterpolationMode.BICUBIC
    return transforms.functional.resized_crop(image, top, left, height, width, list(SIZE), interpolation)


def pipelines() -> dict[str, Callable[[Path, int], Tensor]]:
    """Each takes a file and a seed and gives one augmented image."""
    to_floats = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    flip = v2.RandomHorizontalFlip()

    def official(path: Path, seed: int) -> Tensor:
        result: Tensor = to_floats(official_crop(path, box_of(path, seed)))
        return result

    def v2_uint8(path: Path, seed: int) -> Tensor:
        data = torch.from_numpy(np.fromfile(path, np.uint8))
        pixels = torchvision.io.decode_jpeg(data, torchvision.io.ImageReadMode.RGB)
        box = [int(side) for side in box_of(path, seed)]
        bicubic = v2.InterpolationMode.BICUBIC
        result: Tensor = flip(v2.functional.resized_crop(pixels, *box, list(SIZE), bicubic, antialias=True))
        return result

    def ours(decoder: str) -> Callable[[Path, int], Tensor]:
        augmentation = Augmentation(SIZE, 3, SCALE, True, decoder)

        def run(path: Path, seed: int) -> Tensor:
            with path.open("rb") as file:
                return augmentation(file, path, seed)

        return run

    found = {"official": official, "torchvision v2, 8 bits": v2_uint8, "ours, Pillow": ours("pillow")}
    if resolve_decoder("auto") == "simplejpeg":
        found["ours, simplejpeg"] = ours("simplejpeg")
    return found


_SIZES: dict[Path, tuple[int, int]] = {}


def box_of(path: Path, seed: int) -> Box:
    """The crop that a seed draws for a file; its size is known beforehand, so that no pipeline pays for it."""
    if path not in _SIZES:
        with Image.open(path) as image:
            _SIZES[path] = image.height, image.width
    return draw_box(*_SIZES[path], SCALE, torch.Generator().manual_seed(seed))


def measure(paths: list[Path], rounds: int, crops: int) -> dict[str, dict[str, float]]:
    """Images per second and ratios of every pipeline over the same crops."""
    jobs = [(path, derive_seed(0, "bench", crop, number)) for number, path in enumerate(paths) for crop in range(crops)]
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):  # the first one warms up
        for name, run in pipelines().items():
            started = time.process_time()
            results = [run(path, seed) for path, seed in jobs]
            took = time.process_time() - started
            if name.startswith("ours"):
                for start in range(0, len(results), BATCH):
                    normalise(torch.stack(results[start : start + BATCH]).permute(0, 3, 1, 2))
                with_floats = time.process_time() - started
                seconds.setdefault(f"{name} + floats", []).append(with_floats / len(jobs))
            seconds.setdefault(name, []).append(took / len(jobs))
        if turn == 0:
            seconds.clear()
    table = {}
    for name, took in seconds.items():
        ratios = [base / one for base, one in zip(seconds["official"], took, strict=True)]
        table[name] = {
            "images_per_second": len(took) / sum(took),
            "ratio": sum(ratios) / len(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
        }
    return table


def differences(paths: list[Path], crops: int, decoder: str) -> dict[str, float]:
    """Mean absolute difference to the official pixels on the same boxes, in 255ths."""
    augmentation = Augmentation(SIZE, 3, SCALE, False, decoder)
    found = []
    for number, path in enumerate(paths):
        for crop in range(crops):
            seed = derive_seed(1, "bench", crop, number)
            ours = augmentation(io.BytesIO(path.read_bytes()), path, seed).numpy().astype(float)
            found.append(float(np.abs(ours - np.asarray(official_crop(path, box_of(path, seed)), float)).mean()))
    found.sort()
    return {"mean": sum(found) / len(found), "p95": found[int(len(found) * 0.95)], "worst": found[-1]}


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/data_path.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (side, *_) in SETS.items():
            paths = make_photographs(Path(folder), name)
            crops = max(2, 4000 // side)
            weight = sum(path.stat().st_size for path in paths)
            rates = measure(paths, args.rounds, crops)
            pixels = sum(rows * columns for path in paths for rows, columns in [_SIZES[path]])
            entry: dict[str, Any] = {"bytes_per_pixel": weight / pixels, "crops": crops * len(paths), "rates": rates}
            entry["difference_255ths"] = {
                decoder: differences(paths, 8, decoder)
                for decoder in ("pillow", "simplejpeg")
                if decoder in ("pillow", resolve_decoder("auto"))
            }
            report["sets"][name] = entry
            show(name, entry)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.out}")


def show(name: str, entry: dict[str, Any]) -> None:
    """One set's table."""
    print(f"\n{name} px, {entry['bytes_per_pixel']:.2f} bytes a pixel, {entry['crops']} crops a round, one core")
    print(f"{'pipeline':28} {'images/s':>10} {'ratio':>6}  spread")
    for name, row in entry["rates"].items():
        parallel = f"{row['ratio_low']:.2f}..{row['ratio_high']:.2f}"
        print(f"{name:28} {row['images_per_second']:10.0f} {row['ratio']:6.2f}  {parallel}")
    for name, row in entry["difference_255ths"].items():
        print(f"difference, {name}: mean {row['mean']:.2f}/255, 95 % under {row['p95']:.2f}, worst {row['worst']:.2f}")


def machine() -> dict[str, str]:
    """What it was measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
    versions |= {"pillow": PIL.__version__, "cpu": cpu, "system": platform.platform()}
    if resolve_decoder("auto") == "simplejpeg":
        import simplejpeg

        versions["simplejpeg"] = simplejpeg.__version__
    return versions


if __name__ == "__main__":
    main()
