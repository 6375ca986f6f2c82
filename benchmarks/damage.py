"""How much damage in a checkpoint ``maecli compare`` finds, and how often a healthy file is a false alarm.

    python benchmarks/damage.py --trials 8
    python benchmarks/damage.py --trials 2 --weights run/checkpoint-last.pth --vit-base

Prints two tables in Markdown. Each kind of damage is done to the same file several times, each time at another place
(``tests/unit/comparison/damages.py``). Run it from the root of a checkout.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mae.checkpoints import load_checkpoint
from tests.golden import official
from tests.unit.comparison import damages
from tests.unit.comparison.damages import DEEP, SHALLOW, State, examine


def main() -> None:
    """Print both tables."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--trials", type=int, default=8, help="of each kind of damage, in each file")
    cli.add_argument("--seeds", type=int, default=20, help="of each kind of healthy file; 0 leaves their table out")
    cli.add_argument("--weights", type=Path, nargs="*", default=[], help="trained checkpoints to damage as well")
    cli.add_argument("--vit-base", action="store_true", help="also damage random weights of ViT-Base: minutes")
    options = cli.parse_args()

    files: dict[str, State] = {
        "random": damages.golden(DEEP, np.random.default_rng(0)),
        "simulated": damages.simulated(DEEP, np.random.default_rng(0)),
    }
    trained = {path.stem: _read(path) for path in options.weights}
    if options.vit_base:
        files["ViT-Base"] = official.weights(official.GOLDEN["vit_base"])
    if options.seeds:
        print("| healthy file | files | suspicious | failed |\n|---|---:|---:|---:|")
        for name, states in _healthy(options.seeds, files | trained):
            outcomes = [examine(state) for state in states]
            suspicious = sum(bool(found) for _, found in outcomes)
            failed = sum(bool(sure) for sure, _ in outcomes)
            print(f"| {name} | {len(outcomes)} | {suspicious} | {failed} |", flush=True)
    found: dict[str, list[str]] = {kind: [] for kind in damages.DAMAGES}
    for state in (files | trained).values():
        for kind, failed, seen, _ in damages.rates(state, 0, options.trials):
            found[kind].append(f"{seen:.0%} ({failed:.0%})")
            print(f"{kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
    print(f"\n| damage | {' | '.join(files | trained)} |\n|---|{'---:|' * len(files | trained)}")
    for kind, shares in found.items():
        print(f"| {kind} | {' | '.join(shares)} |")


def _read(path: Path) -> State:
    return {name: tensor.float() for name, tensor in load_checkpoint(path).state.items()}


def _rounded(state: State) -> list[State]:
    """The same in bf16 and in fp16."""
    return [
        {name: tensor.to(dtype).float() for name, tensor in state.items()} for dtype in (torch.bfloat16, torch.float16)
    ]


def _healthy(seeds: int, files: dict[str, State]) -> Iterator[tuple[str, list[State]]]:
    """Healthy files by what they are."""
    shapes = (DEEP, SHALLOW, DEEP.replace(decoder_depth=1))
    for name, make in (("random", damages.golden), ("simulated", damages.simulated), ("fresh", damages.fresh)):
        made = [make(config, np.random.default_rng([7, seed])) for config in shapes for seed in range(seeds)]
        yield f"{name}, three depths", made
        yield f"{name}, in bf16 and fp16", [state for one in made[:seeds] for state in _rounded(one)]
    for steps in (1, 3, 10, 40, 150):
        state = damages.trained(DEEP, np.random.default_rng(steps), steps)
        yield f"trained for {steps} steps; in fp32, bf16, fp16", [state, *_rounded(state)]
    golden = [official.weights(official.GOLDEN[name]) for name in ("golden_tiny", "golden_gray")]
    encoders = [{name: tensor for name, tensor in one.items() if not official.is_decoder(name)} for one in golden]
    yield "golden files of the tests, with and without decoder", golden + encoders
    for name, state in files.items():
        if name not in ("random", "simulated"):
            yield f"{name}; in fp32, bf16, fp16", [state, *_rounded(state)]


if __name__ == "__main__":
    main()
