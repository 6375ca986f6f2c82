"""Run folders like those of the trainer, made in milliseconds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

CONFIG = """\
data = ["photos"]
variant = "vit_tiny"
norm_pix_loss = true
epochs = {epochs}
betas = [0.9, 0.95]
tensorboard = false
"""


def write_run(
    folder: Path, *, done: int = 10, epochs: int = 10, steps_per_epoch: int = 8, log_every: int = 2, previews: int = 3
) -> Path:
    """A run with ``done`` finished epochs, log lines of steps and epochs, and evenly spaced previews."""
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG.format(epochs=epochs))
    every = max(1, done // previews) if previews else done + 1
    with (folder / "log.jsonl").open("w") as log:
        for epoch in range(done):
            for batch in range(1, steps_per_epoch + 1):
                step = epoch * steps_per_epoch + batch
                if step % log_every == 0:
                    log.write(json.dumps(step_line(step, epoch + batch / steps_per_epoch)) + "\n")
            log.write(json.dumps(epoch_line(epoch)) + "\n")
            if (epoch + 1) % every == 0:
                name = f"epoch-{epoch + 1:04d}.png"
                Image.fromarray(noise(epoch)).save(folder / "previews" / name)
                line = {"preview": name, "epoch": epoch, "step": (epoch + 1) * steps_per_epoch, "psnr": 10.0 + epoch}
                log.write(json.dumps(line) + "\n")
    return folder


def step_line(step: int, epoch: float) -> dict[str, float]:
    """A line of the log for a step."""
    loss = 0.2 + 0.8 * math.exp(-epoch / 4) + 0.02 * math.sin(step)
    return {"step": step, "epoch": epoch, "loss": loss, "lr": 1e-4, "images_per_second": 100.0, "data_wait": 0.05}


def epoch_line(epoch: int) -> dict[str, float]:
    """A line of the log for a finished epoch."""
    loss = 0.2 + 0.8 * math.exp(-epoch / 4)
    return {
        "epoch": epoch,
        "train_loss": loss,
        "train_lr": 1e-4,
        "seconds": 12.5,
        "images_per_second": 98.0,
        "data_wait": 0.06,
    }


def noise(seed: int) -> np.ndarray:
    """(60, 160, 3) of coarse colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    return coarse.repeat(10, axis=0).repeat(10, axis=1)
