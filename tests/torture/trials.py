"""The common form of all corpora: commands with a mistake, each with the expected result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mae.checkpoints import save_checkpoint
from mae.config import MAEConfig
from mae.models import create_model
from mae.system.seeding import seeded
from tests.cli.small import SIZES

Words = list[str | Path]
TINY: Words = [
    *SIZES, "--image-size", "16", "--patch-size", "8", "--batch-size", "2", "--epochs", "1",
    "--warmup-epochs", "0", "--workers", "0", "--preview-every", "0", "--device", "cpu", "--precision", "fp32",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Stage:
    """The input of a trial: a folder of its own, and files that it may read and must not change.

    Attributes:
        folder: An empty folder.
        images: A folder with four small images.
        weights: A tiny checkpoint.
    """

    folder: Path
    images: Path
    weights: Path

    @property
    def image(self) -> Path:
        """One of the images."""
        return self.images / "0.png"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One command.

    Attributes:
        name: What is unusual about the command.
        make: Prepares the stage and returns the command's words.
        exit_code: The expected exit code.
        said: A pattern that the output must contain; empty for a trial that is expected to succeed.
        after: Checks the stage after the command.
        largest_file: Bytes after which the system takes no more of any file, as on a full disk; 0 for no limit.
    """

    name: str
    make: Callable[[Stage], Words]
    exit_code: int
    said: str = ""
    after: Callable[[Stage], object] = lambda stage: None
    largest_file: int = 0


def set_stage(folder: Path) -> Stage:
    """Make the images and the weights that all trials of a session share."""
    images = folder / "images"
    images.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{number}.png")
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    with seeded(0), torch.no_grad():
        model = create_model(MAEConfig((32, 32), patch_size=8, decoder_num_heads=2, **sizes))
        for parameter in model.parameters():  # as after training, because initial values are reported
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    save_checkpoint(folder / "tiny.pth", model)
    return Stage(folder, images, folder / "tiny.pth")
