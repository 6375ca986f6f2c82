"""Checkpoints: reading all layouts, building models from them, writing. Only this package knows other key names.

The names below load torch on first use, so that the releases' names can be listed without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.checkpoints.build import build_model as build_model
    from mae.checkpoints.build import from_pretrained as from_pretrained
    from mae.checkpoints.build import load_weights as load_weights
    from mae.checkpoints.load import Checkpoint as Checkpoint
    from mae.checkpoints.load import load_checkpoint as load_checkpoint
    from mae.checkpoints.load import load_checkpoint_or_default as load_checkpoint_or_default
    from mae.checkpoints.save import save_checkpoint as save_checkpoint

_HOME_OF = {
    "build_model": "build",
    "from_pretrained": "build",
    "load_weights": "build",
    "Checkpoint": "load",
    "load_checkpoint": "load",
    "load_checkpoint_or_default": "load",
    "save_checkpoint": "save",
}

__all__ = [*_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mae.checkpoints' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mae.checkpoints.{_HOME_OF[name]}"), name)
