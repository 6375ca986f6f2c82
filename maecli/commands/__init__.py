"""The commands: what ``maecli --help`` says of each, and how one is loaded when it is wanted.

A command's module brings its settings and their checks along, so ``--help`` and completion of names load none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

SUMMARIES = {
    "pretrain": "Train a masked autoencoder on a folder of images; labels are not needed.",
    "watch": "Follow a run from another terminal until its last epoch; Ctrl-C ends the watching, not the run.",
    "report": "Write one HTML file about a run: curves, reconstructions over time, speed, settings, machine.",
    "profile": "Say what a model costs before anyone pays for it: parameters, compute, memory, time.",
    "reconstruct": "Mask images, reconstruct them, and draw original, masked, reconstruction side by side.",
    "embed": "Write the encoder's features of whole images, with file names and class folders, to a file.",
    "evaluate": "Ask frozen features what they know of labelled images: k-NN, linear, attentive, and figures without "
    "labels.",
    "compare": "Prove that a checkpoint is the model it is taken for, and that our computation is the official one.",
    "export": "Write a checkpoint for another tool, then prove that the tool computes the same with it.",
    "replay": "Take a training step again that gave no finite number, and look where the number was lost.",
    "doctor": "Say what this machine has, what is installed, how fast it is and what would hurt: paste it into a bug "
    "report.",
}


class Commands(Mapping[str, Any]):
    """All commands by name, as Typer's own objects, each loaded when it is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


def _load(name: str) -> Any:
    import typer

    from maecli.views.help import Command

    if name not in SUMMARIES:
        raise KeyError(name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(name, cls=Command)(getattr(importlib.import_module(f"maecli.commands.{name}"), name))
    return typer.main.get_command(alone)
