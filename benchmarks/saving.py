"""The cost of saving a run's state during training, measured within one run.

    python benchmarks/saving.py --variant vit_base --batch-size 32 --rounds 4

Three kinds of blocks of steps take turns: without a save, with a save in the thread, and with a save that training
waits for. The cost of a save is the difference of its block to the block without one; its share is relative to the
time between two saves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from training import SIZES, model_config, processor, spread

import mae
from mae.models import create_model
from mae.system.device import resolve_device, resolve_precision
from mae.system.distributed import Ranks
from mae.training.checkpointer import Checkpointer
from mae.training.config import PretrainConfig
from mae.training.position import Position
from mae.training.run_folder import RunFolder
from mae.training.step import TrainingStep

WAYS = ("none", "thread", "waiting")


def main() -> None:
    """Take turns, print the costs and write the figures."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--variant", choices=SIZES, default="vit_base")
    cli.add_argument("--batch-size", type=int, default=32)
    cli.add_argument("--steps", type=int, default=4, help="in a block; the write must end within it")
    cli.add_argument("--rounds", type=int, default=4)
    cli.add_argument("--folder", type=Path, help="on the disk to write to; a temporary one else")
    cli.add_argument("--out", type=Path, help="write the figures as JSON")
    args = cli.parse_args()
    device = resolve_device("auto")
    model = create_model(model_config(args.variant)).to(device)
    precision = resolve_precision("auto", device)
    step = TrainingStep(model, precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = torch.randint(0, 256, (args.batch_size, 3, 224, 224), dtype=torch.uint8)
    costs = measure(step, images, steps=args.steps, rounds=args.rounds, folder=args.folder)
    each = costs["step_seconds"]["median"]
    print(
        f"{args.variant}, batch {args.batch_size}, {device}, {precision}: {costs['bytes'] / 1e9:.2f} GB; "
        f"a step is {each:.2f} s"
    )
    minutes = costs["minutes_between_saves"]
    for way, values in costs["cost_seconds"].items():
        share = values["median"] / (60 * minutes)
        print(f"{way:8} costs {values['median']:6.2f} s ({values['low']:.2f}..{values['high']:.2f}), "
              f"{share:.2%} of the {minutes:g} minutes between two saves")  # fmt: skip
    print(f"of which the copy stops training for {costs['copy_seconds']['median']:.2f} s")
    if args.out:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"processor": processor(), "threads": torch.get_num_threads(), "device": str(device)},
            "versions": {"torch": torch.__version__, "maecli": mae.__version__},
            **costs,
        }
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def measure(
    step: TrainingStep, images: torch.Tensor, *, steps: int, rounds: int, folder: Path | None = None
) -> dict[str, Any]:
    """What saves cost: blocks of ``steps`` steps with and without one, in turn.

    Args:
        step: Whose state is saved.
        images: Of each step.
        steps: In a block; the write must end within it.
        rounds: How often each way has its turn.
        folder: On the disk to write to; a temporary one else.
    """
    minutes = next(
        field.default for field in PretrainConfig.__dataclass_fields__.values() if field.name == "save_minutes"
    )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run = RunFolder(Path(place), resume=False)
        checkpointer = Checkpointer(run, step, Ranks(), args={}, identity={}, minutes=minutes, keep_last=2)
        block(step, images, 2)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        blocking = []
        for number in range(rounds):
            for way in WAYS:
                start = time.perf_counter()
                if way != "none":
                    checkpointer.save(Position(step=number), wait=way == "waiting")
                    blocking += [time.perf_counter() - start] if way == "thread" else []
                block(step, images, steps)
                checkpointer.finish()
                seconds[way].append(time.perf_counter() - start)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
        size = run.checkpoint.stat().st_size
    costs = {way: [a - b for a, b in zip(seconds[way], seconds["none"], strict=True)] for way in ("thread", "waiting")}
    return {
        "bytes": size,
        "minutes_between_saves": minutes,
        "steps_in_a_block": steps,
        "step_seconds": spread([one / steps for one in seconds["none"]]),
        "cost_seconds": {way: spread(values) for way, values in costs.items()},
        "copy_seconds": spread(blocking),
    }


def block(step: TrainingStep, images: torch.Tensor, steps: int) -> None:
    """So many steps."""
    for _ in range(steps):
        step.backward(images, 0.75, torch.rand(len(images), step.model.config.num_patches))
        step.update()
    if step.device.type == "cuda":
        torch.cuda.synchronize(step.device)


if __name__ == "__main__":
    main()
