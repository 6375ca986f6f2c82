"""Checkpoints: reading any dialect, building models from them, writing. Nothing else knows foreign key names."""

from mae.checkpoints.building import build_model, from_pretrained, load_weights
from mae.checkpoints.reading import Checkpoint, load_checkpoint
from mae.checkpoints.writing import save_checkpoint

__all__ = ["Checkpoint", "build_model", "from_pretrained", "load_checkpoint", "load_weights", "save_checkpoint"]
