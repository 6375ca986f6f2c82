"""Calculates the training throughput with many GPUs from compute, gradient bytes and interconnect.

    python benchmarks/scaling.py --gpus 8 64 1024
    python benchmarks/scaling.py --variant vit_large --step-seconds 0.081 --batch-size 64

Nothing is measured here. ``--step-seconds`` is the step time of one GPU as ``pretrain`` shows it; without it, the step
time is the training FLOPs divided by a fraction of the GPU's peak. The communication is that of DDP: in each backward
pass, all gradients are summed over all GPUs.

An all-reduce moves 2 (N - 1) / N times the gradient's bytes over the slowest link: within a node each GPU's link,
between nodes all network adapters of a node together. It takes 2 log2(N) rounds, as in a tree. It overlaps with the
backward pass, which is two thirds of the step, except for the last bucket.
"""

from __future__ import annotations

import argparse
import math

from mae.profiling.config import ProfileConfig
from mae.profiling.run import profile

GRADIENT_BYTES = 4  # fp32, as DDP sums them here
BUCKET_BYTES = 25e6  # DDP's: the last one has nothing to hide behind
BACKWARD_SHARE = 2 / 3


def main() -> None:
    """Print a table of the expected steps."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--variant", nargs="+", default=["vit_base", "vit_large", "vit_huge"])
    cli.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 1024])
    cli.add_argument("--batch-size", type=int, default=64, help="images on each GPU")
    cli.add_argument("--step-seconds", type=float, help="measured, of one GPU alone")
    cli.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 peak of one GPU (H100 SXM)")
    cli.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached: a guess")
    cli.add_argument("--node-gpus", type=int, default=8)
    cli.add_argument("--node-gbs", type=float, default=360.0, help="GB/s per GPU within a node, reached")
    cli.add_argument("--network-gbs", type=float, default=40.0, help="GB/s of one GPU's adapter, reached")
    cli.add_argument("--latency-us", type=float, default=15.0, help="of one round between nodes")
    args = cli.parse_args()
    print(f"{args.batch_size} images on each GPU; compute at {args.utilisation:.0%} of {args.peak_tflops:.0f} TFLOP/s"
          if args.step_seconds is None else f"a step of one GPU takes {args.step_seconds} s")  # fmt: skip
    print(f"{'variant':10}{'GPUs':>6}{'compute ms':>12}{'gradient GB':>13}{'sum ms':>9}{'shows ms':>10}"
          f"{'images/s':>12}{'efficiency':>12}")  # fmt: skip
    for name in args.variant:
        for gpus in args.gpus:
            print_row(name, gpus, args)


def print_row(name: str, gpus: int, args: argparse.Namespace) -> None:
    """One variant on so many GPUs."""
    variant = profile(ProfileConfig(variant=(name,), batch_size=args.batch_size, device="cpu")).variants[0]
    flops = variant.compute.own_training_step * args.batch_size
    compute = args.step_seconds or flops / (args.peak_tflops * 1e12 * args.utilisation)
    gradient = GRADIENT_BYTES * variant.parameters.trainable
    total, shows = summing(gradient, gpus, args)
    shows = max(shows, total - BACKWARD_SHARE * compute)
    rate = gpus * args.batch_size / (compute + shows)
    efficiency = rate / (gpus * args.batch_size / compute)
    print(f"{name:10}{gpus:>6,}{1e3 * compute:>12.1f}{gradient / 1e9:>13.2f}{1e3 * total:>9.1f}{1e3 * shows:>10.1f}"
          f"{rate:>12,.0f}{efficiency:>12.1%}")  # fmt: skip


def summing(gradient: float, gpus: int, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of summing all gradients, and of the last bucket alone."""
    if gpus == 1:
        return 0.0, 0.0
    # Each GPU of a node sends its part of the sum over its own adapter, so a node's adapters work side by side.
    across = min(args.node_gbs, args.network_gbs * args.node_gpus)
    speed = 1e9 * (args.node_gbs if gpus <= args.node_gpus else across)
    latency = 2 * math.log2(gpus) * 1e-6 * args.latency_us
    moved = 2 * (gpus - 1) / gpus
    buckets = math.ceil(gradient / BUCKET_BYTES)
    return moved * gradient / speed + buckets * latency, moved * min(gradient, BUCKET_BYTES) / speed + latency


if __name__ == "__main__":
    main()
