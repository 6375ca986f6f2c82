"""Sharded states: each process writes its shards, and any number of processes can read them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from mae.checkpoints.sharded import ABOUT, first_cause, read_about, read_into
from mae.io.files import write_atomically
from mae.io.text import first_line
from mae.system.distributed import Ranks
from mae.training.step import TrainingStep


def write_shards(folder: Path, training_step: TrainingStep, about: Mapping[str, Any], ranks: Ranks) -> None:
    """Write weights and optimiser moments into a new folder, and the metadata ``about`` as JSON.

    Raises:
        OSError: The folder cannot be written.
    """
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    ranks.wait()
    state = training_step.state()
    tensors = _by_name(state["model"], state["optimizer"]["state"])
    try:
        save(tensors, storage_writer=FileSystemWriter(folder), process_group=ranks.control)
    except CheckpointException as error:
        cause = first_cause(error)
        raise cause if isinstance(cause, OSError) else OSError(first_line(cause)) from None
    if ranks.first:
        config = dataclasses.asdict(training_step.model.config)
        plain = {**about, "config": config, "param_groups": state["optimizer"]["param_groups"]}
        write_atomically(folder / ABOUT, lambda file: file.write(json.dumps(plain, indent=1).encode()))


def restore_shards(folder: Path, training_step: TrainingStep) -> None:
    """Read this process's shards of a state that any number of processes wrote.

    Raises:
        CheckpointError: The folder is damaged.
    """
    parameters = [p.detach() for group in training_step.optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {
        number: {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for number, p in enumerate(parameters)
    }
    ranks = training_step.ranks
    read_into(folder, _by_name(training_step.model.state_dict(), moments), ranks.control)
    training_step.optimizer.load_state_dict({"state": moments, "param_groups": read_about(folder)["param_groups"]})


def _by_name(model: Mapping[str, Tensor], moments: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    tensors = {f"model.{name}": tensor for name, tensor in model.items()}
    for number, entry in moments.items():
        tensors |= {f"moments.{number}.{name}": tensor for name, tensor in entry.items()}
    return tensors
