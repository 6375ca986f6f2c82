"""Runs of models of one block on a few images, to test the loop and not the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mae.checkpoints import load_checkpoint
from mae.training.config import PretrainConfig
from mae.training.events import Event, Stepped


def make_images(folder: Path) -> Path:
    """Eleven images in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(11):
        pixels = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def small_config(images: Path, out: Path) -> PretrainConfig:
    """Three epochs of three steps each: five batches of two images, with two, two and one batch per step."""
    return PretrainConfig(
        data=(images,), variant="vit_tiny", image_size=(32, 16), patch_size=8, batch_size=2, accum_iter=2, epochs=3,
        warmup_epochs=1.0, lr=2e-3, workers=0, device="cpu", precision="fp32", log_every=1, preview_every=2,
        out=out,
    )  # fmt: skip


def make_models_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder and decoder of one block each."""
    original = PretrainConfig.model_config
    monkeypatch.setattr(
        PretrainConfig, "model_config", lambda self: original(self).replace(depth=1, decoder_depth=1, embed_dim=48)
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's newest state."""
    return load_checkpoint(run / "checkpoint-last.pth").state


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def logged(run: Path) -> list[dict[str, Any]]:
    """The log without times and rates."""
    timed = {"images_per_second", "data_wait", "seconds"}
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def stop_after(steps: int) -> tuple[Callable[[Event], None], Callable[[], bool]]:
    """An event listener that stops a run after this many steps."""
    done = 0

    def listen(event: Event) -> None:
        nonlocal done
        done = event.step if isinstance(event, Stepped) else done

    return listen, lambda: done >= steps
