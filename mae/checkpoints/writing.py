"""Writing a checkpoint that the official scripts read as their own."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mae.errors import CheckpointError
from mae.files import write_atomically
from mae.mae import MaskedAutoencoder


def save_checkpoint(
    path: str | Path,
    model: MaskedAutoencoder,
    *,
    optimizer: Mapping[str, Any] | torch.optim.Optimizer | None = None,
    epoch: int | None = None,
    scaler: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint in the official trainer's layout, whole or not at all.

    The entry ``maecli`` holds the model's sizes, so that our own files need no guess about heads.

    Args:
        path: The file; its folder must exist.
        model: Its state dict becomes ``model``.
        optimizer, epoch, scaler: Where training stands; left out where None.
        args: The run's options, stored as an ``argparse.Namespace``; plain values only.
        extra: Entries beside the official ones, under their own keys.

    Raises:
        CheckpointError: The file cannot be written.
    """
    document: dict[str, Any] = {"model": model.state_dict()}
    if optimizer is not None:
        document["optimizer"] = optimizer if isinstance(optimizer, Mapping) else optimizer.state_dict()
    if epoch is not None:
        document["epoch"] = epoch
    if scaler is not None:
        document["scaler"] = dict(scaler)
    if args is not None:
        document["args"] = argparse.Namespace(**args)
    document |= extra or {}
    document["maecli"] = {"config": dataclasses.asdict(model.config)} | dict(document.get("maecli", {}))
    save(Path(path), document)


def save(path: Path, document: Mapping[str, Any]) -> None:
    """``torch.save``, whole or not at all.

    Raises:
        CheckpointError: The file cannot be written.
    """
    try:
        write_atomically(path, lambda file: torch.save(document, file))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"cannot write {path}: {reason}") from None
