"""A small encoder and folders of small images for the tests of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mae
from mae.checkpoints import save_checkpoint

SIZES: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def checkpoint(path: Path, **changes: Any) -> Path:
    """A file with fresh weights, always the same."""
    from mae.system.seeding import seeded

    with seeded(5):
        model = mae.MaskedAutoencoder(**{**SIZES, **changes})
    save_checkpoint(path, model)
    return path


def image(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (20, 16)) -> Path:
    """One PNG of a noisy colour; ``size`` is (width, height)."""
    stream = np.random.default_rng(seed)
    noise = stream.normal(0, 40, (size[1], size[0], 3)) + np.array(colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return path


def class_folders(root: Path, each: int, seed: int = 0, names: tuple[str, ...] = ("blue", "green", "red")) -> Path:
    """``root/COLOUR/N.png``."""
    for place, name in enumerate(names):
        for number in range(each):
            image(root / name / f"{number}.png", COLOURS[name], 1000 * seed + 100 * place + number)
    return root
