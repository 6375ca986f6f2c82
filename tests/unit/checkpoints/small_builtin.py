"""Small weights that replace the built-in ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from mae.checkpoints.builtin import CHECKSUM_FILE, WEIGHTS_FILE
from mae.checkpoints.save import save_safetensors
from mae.mae import MaskedAutoencoder

TRAINED_ON = "7 photographs for 2 epochs"


def write_builtin(folder: Path, model: MaskedAutoencoder | None = None) -> MaskedAutoencoder:
    """Write a folder for ``MAECLI_BUILTIN``; returns its model, with weights rounded like the built-in ones."""
    torch.manual_seed(0)
    model = model or MaskedAutoencoder(32, 8, 3, 32, 1, 2, 32, 1, 2)
    with torch.no_grad():
        for parameter in model.parameters():  # not the initial values, which ``compare`` would report
            parameter += 0.02 * torch.randn(parameter.shape)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor if key.endswith("pos_embed") else tensor.half() for key, tensor in model.state_dict().items()}
    entry = {"config": dataclasses.asdict(model.config), "trained_on": TRAINED_ON}
    save_safetensors(folder / WEIGHTS_FILE, state, {"maecli": json.dumps(entry)})
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    (folder / CHECKSUM_FILE).write_text(f"{digest}  {WEIGHTS_FILE}\n")
    model.load_state_dict({key: tensor.float() for key, tensor in state.items()})
    return model
