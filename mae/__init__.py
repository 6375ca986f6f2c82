"""Masked autoencoders (He et al. 2021, arXiv 2111.06377): the model, its training, its cost, its images.

Importing this package loads no torch; the names below load what they need on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae.checkpoints import from_pretrained as from_pretrained
    from mae.checkpoints import load_checkpoint as load_checkpoint
    from mae.config import MAEConfig as MAEConfig
    from mae.decoder import MAEDecoder as MAEDecoder
    from mae.encoder import MAEEncoder as MAEEncoder
    from mae.errors import MaeError as MaeError
    from mae.mae import MaskedAutoencoder as MaskedAutoencoder
    from mae.models import VARIANTS as VARIANTS
    from mae.models import create_model as create_model
    from mae.models import mae_vit_base_patch16 as mae_vit_base_patch16
    from mae.models import mae_vit_huge_patch14 as mae_vit_huge_patch14
    from mae.models import mae_vit_large_patch16 as mae_vit_large_patch16
    from mae.models import mae_vit_small_patch16 as mae_vit_small_patch16
    from mae.models import mae_vit_tiny_patch16 as mae_vit_tiny_patch16
    from mae.models import variant_config as variant_config

__version__ = "0.1.0"

_HOMES = {
    "mae.config": ("MAEConfig",),
    "mae.errors": ("MaeError",),
    "mae.encoder": ("MAEEncoder",),
    "mae.decoder": ("MAEDecoder",),
    "mae.mae": ("MaskedAutoencoder",),
    "mae.models": (
        "VARIANTS",
        "create_model",
        "mae_vit_base_patch16",
        "mae_vit_huge_patch14",
        "mae_vit_large_patch16",
        "mae_vit_small_patch16",
        "mae_vit_tiny_patch16",
        "variant_config",
    ),
    "mae.checkpoints": ("from_pretrained", "load_checkpoint"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mae' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
