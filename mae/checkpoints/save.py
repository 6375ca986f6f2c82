"""Writes checkpoints that the official scripts can read, and files of weights alone."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mae.checkpoints.container import OWN_MODEL_TYPE, TORCH_SUFFIXES
from mae.config import MAEConfig
from mae.errors import CheckpointError
from mae.io.files import resolve_target, temporary_beside, write_atomically
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
    """Write a checkpoint in the official trainer's layout, atomically.

    The entry ``maecli`` holds the model's sizes, including the numbers of heads, which the shapes do not give.

    Args:
        path: The file; its folder must exist.
        model: The model; its state dict becomes the entry ``model``.
        optimizer, epoch, scaler: Training state; entries that are None are omitted.
        args: Options of the run as plain values, stored as an ``argparse.Namespace``.
        extra: Additional entries by key.

    Raises:
        CheckpointError: The file cannot be written.
    """
    state = optimizer.state_dict() if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    document = checkpoint_document(
        model.state_dict(), model.config, optimizer=state, epoch=epoch, scaler=scaler, args=args, extra=extra
    )
    save(Path(path), document)


def checkpoint_document(
    model: Mapping[str, Tensor],
    config: MAEConfig,
    *,
    optimizer: Mapping[str, Any] | None = None,
    epoch: int | None = None,
    scaler: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document that ``save_checkpoint`` writes, made from a state dict."""
    document: dict[str, Any] = {"model": model}
    if optimizer is not None:
        document["optimizer"] = optimizer
    if epoch is not None:
        document["epoch"] = epoch
    if scaler is not None:
        document["scaler"] = dict(scaler)
    if args is not None:
        document["args"] = argparse.Namespace(**args)
    document |= extra or {}
    document["maecli"] = {"config": dataclasses.asdict(config)} | dict(document.get("maecli", {}))
    return document


def save_pretrained(model: MaskedAutoencoder, path: str | Path) -> Path:
    """Write a model's weights, under the official release's names, so that ``from_pretrained`` gives it back.

    Args:
        model: The model.
        path: A file that ends in .safetensors, .pth or .pt; any other name is a folder, created if necessary, for
            ``model.safetensors`` and ``config.json``.

    Returns:
        ``path``.

    Raises:
        CheckpointError: The file cannot be written.
    """
    path = Path(path)
    state = {key: tensor.cpu() for key, tensor in model.state_dict().items()}
    document = checkpoint_document(state, model.config)
    if path.suffix.lower() in TORCH_SUFFIXES and not path.is_dir():
        save(path, document)
        return path
    entry = {"maecli": json.dumps(document["maecli"])}
    if path.suffix.lower() == ".safetensors" and not path.is_dir():
        save_safetensors(path, state, entry)
        return path
    settings = json.dumps({"model_type": OWN_MODEL_TYPE, **dataclasses.asdict(model.config)}, indent=2) + "\n"
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(path / "config.json", lambda file: file.write(settings.encode()))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
    save_safetensors(path / "model.safetensors", state, entry)
    return path


def save(path: Path, document: Mapping[str, Any]) -> None:
    """``torch.save``, atomically.

    Raises:
        CheckpointError: The file cannot be written; a full disk is checked for, since torch's error does not name it.
    """
    try:
        needed, free = _tensor_bytes(document), shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"it needs {needed / 1e6:.1f} MB and the disk has {free / 1e6:.1f} MB left")
        write_atomically(path, lambda file: torch.save(document, file))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"cannot write {path}: {reason}") from None


def save_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, atomically, and without copying all of them in memory.

    Raises:
        CheckpointError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary: Path | None = None
    try:
        target = resolve_target(path)
        temporary = temporary_beside(target)
        with temporary.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, temporary, {"format": "pt", **metadata})
        with temporary.open("r+b") as file:  # Windows flushes no file that is open for reading
            os.fsync(file.fileno())
        temporary.chmod(mode)  # save_file sets 0600, so other users could not read it
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _tensor_bytes(value: Any) -> int:
    """Bytes of all tensors inside a document of mappings and lists."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(item) for item in value.values())
    return sum(_tensor_bytes(item) for item in value) if isinstance(value, list | tuple) else 0
