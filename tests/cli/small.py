"""Options for a model that is small enough for commands to take a moment."""

from __future__ import annotations

SIZES = [
    "--embed-dim", "32", "--depth", "2", "--num-heads", "2",
    "--decoder-embed-dim", "32", "--decoder-depth", "2", "--decoder-num-heads", "2",
]  # fmt: skip
