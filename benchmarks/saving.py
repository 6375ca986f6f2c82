"""What it costs to save a run's state while training goes on, interleaved in one run.

    python benchmarks/saving.py --variant vit_base --batch-size 32 --rounds 4

Blocks of steps without a save, with one on the thread, and with one that training waits for take turns. The cost
of a save is what its block took longer than the one without; its share is that over the time between two saves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from training import SIZES, processor, spread

import mae
from mae.config import MAEConfig
from mae.models import create_model
from mae.system.device import resolve_device, resolve_precision
from mae.system.distributed import Ranks
from mae.training.checkpointer import Checkpointer
from mae.training.config import PretrainConfig
from mae.training.run_folder import Position, RunFolder
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
    model = create_model(MAEConfig((224, 224), 16, 3, *SIZES[args.variant], norm_pix_loss=True)).to(device)
    precision = resolve_precision("auto", device)
    step = TrainingStep(model, precision, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    images = torch.randint(0, 256, (args.batch_size, 3, 224, 224), dtype=torch.uint8)
    minutes = next(
        field.default for field in PretrainConfig.__dataclass_fields__.values() if field.name == "save_minutes"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = RunFolder(Path(folder), resume=False)
        checkpointer = Checkpointer(run, step, Ranks(), args={}, identity={}, minutes=minutes, keep_last=2)
        block(step, images, 2)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        blocking = []
        for number in range(args.rounds):
            for way in WAYS:
                start = time.perf_counter()
                if way != "none":
                    checkpointer.save(Position(step=number), wait=way == "waiting")
                    blocking += [time.perf_counter() - start] if way == "thread" else []
                block(step, images, args.steps)
                checkpointer.finish()
                seconds[way].append(time.perf_counter() - start)
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        size = run.checkpoint.stat().st_size
    costs = {way: [a - b for a, b in zip(seconds[way], seconds["none"], strict=True)] for way in ("thread", "waiting")}
    each = statistics.median(seconds["none"]) / args.steps
    print(
        f"{args.variant}, batch {args.batch_size}, {device}, {precision}: {size / 1e9:.2f} GB; a step is {each:.2f} s"
    )
    for way, values in costs.items():
        share = statistics.median(values) / (60 * minutes)
        print(f"{way:8} costs {statistics.median(values):6.2f} s ({min(values):.2f}..{max(values):.2f}), "
              f"{share:.2%} of the {minutes:g} minutes between two saves")  # fmt: skip
    print(f"of which the copy stops training for {statistics.median(blocking):.2f} s")
    if args.out:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {"processor": processor(), "threads": torch.get_num_threads(), "device": str(device)},
            "versions": {"torch": torch.__version__, "maecli": mae.__version__},
            "bytes": size, "minutes_between_saves": minutes, "steps_in_a_block": args.steps,
            "cost_seconds": {way: spread(values) for way, values in costs.items()},
            "copy_seconds": spread(blocking),
        }  # fmt: skip
        args.out.write_text(json.dumps(document, indent=1) + "\n")


def block(step: TrainingStep, images: torch.Tensor, steps: int) -> None:
    """So many steps."""
    for _ in range(steps):
        step.backward(images, 0.75, torch.rand(len(images), 196))
        step.update()
    if step.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
