"""The commands: their summaries for ``maecli --help``, and how each is loaded on demand.

Importing a command's module is slow, because it imports the command's settings, so ``--help`` and completion of command
names do not import any.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

SUMMARIES = {
    "inspect": "Show what a data set holds: formats, channels, sizes, duplicates, unreadable files, a contact sheet.",
    "pretrain": "Train a masked autoencoder on a folder of images; labels are not needed.",
    "watch": "Show a run's progress from another terminal; Ctrl-C stops watching, not the run.",
    "runs": "List the runs in a folder: how far each is, how good, and whether it is still training.",
    "report": "Write an HTML report of a run: loss curves, reconstructions over time, speed, settings, hardware.",
    "profile": "Estimate what a model costs before you train it: parameters, FLOPs, memory, time, price.",
    "reconstruct": "Mask images, reconstruct them, and draw original, masked and reconstruction side by side.",
    "demo": "Open a page on this machine: drop an image, mask it with a brush or a slider, and see it reconstructed.",
    "embed": "Write the encoder's features of unmasked images to a file, with file names and class labels.",
    "evaluate": "Evaluate frozen features on labelled images: k-NN, linear and attentive probes, label-free metrics.",
    "linprobe": "Train a linear classifier on a frozen encoder by the official recipe, and test the best epoch once.",
    "finetune": "Fine-tune an encoder with a classification head on labelled images, and test the best epoch once.",
    "predict": "Name the classes of images with a fine-tuned classifier.",
    "compare": "Check a checkpoint, and this implementation, against a reference implementation stage by stage.",
    "export": "Convert a checkpoint for another tool, then verify that the tool computes the same outputs.",
    "replay": "Re-run the training step that produced a non-finite loss or gradient, and find the module it came from.",
    "doctor": "Print hardware, installed packages, speed and likely problems of this machine, for a bug report.",
}


class Commands(Mapping[str, Any]):
    """All commands by name, as Typer objects that are loaded on demand."""

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
