"""Accuracy of the frozen features against CPU time, from results of ``learning.py``; needs matplotlib.

    python benchmarks/learning_curve.py CIFAR-10=learning_cifar10.json --arm shallow --arm paper --out curve.svg

A line joins the evaluations within one run. A point alone is the end of a run without others, whose learning rate fell
to zero by then.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

NAMES = {
    "shallow": "--preset fast",
    "paper": "the paper's recipe",
    "muon": "two decoder blocks, Muon",
    "cross": "cross-attention decoder",
    "average": "two decoder blocks, averaged weights",
}


def main() -> None:
    """One panel for each result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--arm", action="append", required=True, choices=NAMES)
    parser.add_argument("--untrained", type=float, nargs="*", default=[], help="Linear accuracy, one for each result.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    mpl.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "maecli",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
    }
    figure, panels = plt.subplots(1, len(options.results), figsize=(4.6 * len(options.results), 3.6), squeeze=False)
    for number, (result, panel) in enumerate(zip(options.results, panels[0], strict=True)):
        title, file = result.split("=", 1)
        runs = json.loads(Path(file).read_text())["runs"]
        for colour, arm in enumerate(options.arm):
            mine = [one for one in runs if one["arm"] == arm and one["seed"] == 0]
            if not mine:
                continue
            style = {"color": f"C{colour}", "marker": "o", "markersize": 4}
            for one in mine:
                curve = one.get("curve", [one])
                panel.plot([point["minutes"] for point in curve], [100 * point["linear"] for point in curve], **style)
            panel.plot([], [], label=NAMES[arm], **style)
        if options.untrained:
            panel.axhline(options.untrained[number], color="0.6", linestyle=":", label="untrained encoder")
        panel.set(title=title, xlabel="CPU minutes of pre-training", ylabel="linear accuracy, %", xlim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None, "Creator": None})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
