"""Compares an uninterrupted run with a stopped and resumed one, with torch's deterministic kernels.

It is a separate program, because cuBLAS reads its workspace setting only once: ``deterministic.py DEVICE PRECISION
FOLDER``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from mae.checkpoints import load_checkpoint
from mae.training.config import PretrainConfig
from mae.training.events import Event, Stepped
from mae.training.pretrain import pretrain

ROOT = Path(__file__).parents[2]


def main(device: str, precision: str, folder: Path) -> None:
    torch.use_deterministic_algorithms(True)
    original = PretrainConfig.model_config
    PretrainConfig.model_config = lambda self: original(self).replace(depth=2, decoder_depth=2)  # type: ignore[method-assign]
    whole = PretrainConfig(
        data=(ROOT / "sample_images",), variant="vit_tiny", image_size=(64, 64), batch_size=2, epochs=6,
        warmup_epochs=1.0, lr=1e-3, workers=1, device=device, precision=precision, log_every=1,
        preview_every=3, out=folder / "whole",
    )  # fmt: skip
    parted = dataclasses.replace(whole, out=folder / "parted")
    done = 0

    def listen(event: Event) -> None:
        nonlocal done
        done = event.step if isinstance(event, Stepped) else done

    first = pretrain(whole)
    stopped = pretrain(parted, listen, lambda: done >= 10)
    assert stopped.stopped
    assert 10 <= stopped.steps < first.steps
    assert pretrain(dataclasses.replace(parted, resume=parted.out)).steps == first.steps
    states = [load_checkpoint(run.out / "checkpoint-last.pth") for run in (whole, parted)]
    assert states[0].state.keys() == states[1].state.keys()
    unlike = [key for key, tensor in states[0].state.items() if not torch.equal(tensor, states[1].state[key])]
    assert not unlike, f"{len(unlike)} tensors differ, {unlike[0]} among them"
    assert logged(whole.out) == logged(parted.out)


def logged(run: Path) -> list[dict[str, Any]]:
    timed = {"images_per_second", "data_wait", "seconds"}
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
