"""Are photographs among the training images? The most similar training image of each, by small thumbnails.

    python benchmarks/duplicates.py photos136/train sample_images --out benchmarks/results/duplicates.json

Whole images are scaled to 16 x 16 pixels, the mean of each channel is subtracted, and the cosine similarity is
computed. For the same photograph in another size or compression it is above 0.98, or above the similarity of the
photograph to a small recompressed copy of itself. Another crop of a photograph may not be found.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.data.decoding.formats import ImageError
from mae.data.sources.scan import scan_images

SIDE = 16
SAME = 0.98


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names, wanted, images = features(options.photographs)
    smaller = np.stack([feature(recompressed(image)) for image in images])
    again = (wanted * smaller).sum(axis=1)
    least = np.minimum(SAME, again)  # a photograph of fine detail loses more by compression
    trained, known, _ = features(options.training, keep=False)
    likeness = wanted @ known.T  # (photographs, training images)
    nearest = likeness.argmax(axis=1)
    found = [
        {"photograph": name, "training_image": trained[best], "cosine": round(float(likeness[row, best]), 4)}
        for row, (name, best) in enumerate(zip(names, nearest, strict=True))
    ]
    for one in sorted(found, key=lambda one: -float(one["cosine"])):
        print(f"{one['photograph']:<20}{one['cosine']:7.3f}  {one['training_image']}")
    result = {
        "training_images": len(trained),
        "photographs": len(names),
        "lowest_of_a_recompressed_copy": round(float(again.min()), 4),
        "highest": max(float(one["cosine"]) for one in found),
        "duplicates": [
            one["photograph"] for one in found if float(one["cosine"]) >= least[names.index(one["photograph"])]
        ],
        "nearest": found,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def features(place: Path, *, keep: bool = True) -> tuple[list[str], NDArray[np.float32], list[Image.Image]]:
    """Names, thumbnails (N, D) of length 1, and the images where they are kept."""
    source = scan_images([place]).images
    names, rows, images = [], [], []
    for index in range(len(source)):
        try:
            image = source.load(index, 3)
        except ImageError:
            continue
        names.append(source.name(index).name)
        rows.append(feature(image))
        images += [image] if keep else []
    return names, np.stack(rows), images


def feature(image: Image.Image) -> NDArray[np.float32]:
    """One thumbnail as a vector."""
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels - pixels.mean(axis=(0, 1))
    flat: NDArray[np.float32] = pixels.reshape(-1)
    return flat / max(float(np.linalg.norm(flat)), 1e-6)


def recompressed(image: Image.Image) -> Image.Image:
    """As it might be in another collection: smaller, and a JPEG of low quality."""
    small = image.copy()
    small.thumbnail((136, 136))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=60)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


if __name__ == "__main__":
    main()
