"""Pre-train a small model on images of 32 pixels: the run that docs/cifar10.md reports.

    python benchmarks/cifar10.py CIFAR/train --epochs 24 --out run

What ``maecli pretrain --variant vit_tiny --image-size 32 --patch-size 4 ...`` does, with half of the encoder's blocks
and a smaller decoder, so that two hours of one CPU core see every image often enough. Run again with the same
arguments, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mae.config import MAEConfig
from mae.training.config import PretrainConfig
from mae.training.pretrain import pretrain
from maecli.output import Output
from maecli.stopping import StopOnSignal
from maecli.views.progress import TrainingView


@dataclasses.dataclass(frozen=True)
class SmallConfig(PretrainConfig):
    """``vit_tiny`` with an encoder of 192/6/3 and a decoder of 96/2/3 (width/blocks/heads)."""

    def model_config(self) -> MAEConfig:
        """The sizes that no name of the command line has."""
        return super().model_config().replace(depth=6, decoder_embed_dim=96, decoder_depth=2, decoder_num_heads=3)


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="The training images; their labels are not used.")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--warmup-epochs", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--val", type=Path, help="Photographs to show as the model learns.")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = SmallConfig(
        data=(args.data,),
        variant="vit_tiny",
        image_size=(32, 32),
        patch_size=4,
        crop_scale=(0.5, 1.0),
        batch_size=args.batch_size,
        epochs=args.epochs,
        warmup_epochs=args.warmup_epochs,
        lr=args.lr,
        workers=0,
        cache=400,
        val=args.val,
        save_every=4,
        preview_every=4,
        out=args.out,
        auto_resume=True,
    )
    with StopOnSignal() as stop, TrainingView(Output()) as view:
        result = pretrain(config, view, stop)
    print(f"{result.epochs} epochs, {result.steps:,} steps, loss {result.train_loss:.4f}: {result.checkpoint}")


if __name__ == "__main__":
    main()
