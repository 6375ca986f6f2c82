"""The published sizes and two small ones, by name.

Reading a size needs no torch; building a model does.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig
from mae.errors import ConfigError
from mae.models.mae_vit_base import MAE_VIT_BASE_PATCH16, mae_vit_base_patch16
from mae.models.mae_vit_huge import MAE_VIT_HUGE_PATCH14, mae_vit_huge_patch14
from mae.models.mae_vit_large import MAE_VIT_LARGE_PATCH16, mae_vit_large_patch16
from mae.models.mae_vit_small import MAE_VIT_SMALL_PATCH16, mae_vit_small_patch16
from mae.models.mae_vit_tiny import MAE_VIT_TINY_PATCH16, mae_vit_tiny_patch16

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

__all__ = [
    "VARIANTS",
    "create_model",
    "factory_name",
    "mae_vit_base_patch16",
    "mae_vit_huge_patch14",
    "mae_vit_large_patch16",
    "mae_vit_small_patch16",
    "mae_vit_tiny_patch16",
    "variant_config",
    "variant_name",
]

VARIANTS: dict[str, MAEConfig] = {
    "vit_tiny": MAE_VIT_TINY_PATCH16,
    "vit_small": MAE_VIT_SMALL_PATCH16,
    "vit_base": MAE_VIT_BASE_PATCH16,
    "vit_large": MAE_VIT_LARGE_PATCH16,
    "vit_huge": MAE_VIT_HUGE_PATCH14,
}

_FACTORY_NAMES = {
    factory.__name__: name
    for name, factory in zip(
        VARIANTS,
        (
            mae_vit_tiny_patch16,
            mae_vit_small_patch16,
            mae_vit_base_patch16,
            mae_vit_large_patch16,
            mae_vit_huge_patch14,
        ),
        strict=True,
    )
}


def variant_name(name: str) -> str:
    """The command line's name of a variant, from that name or the factory's.

    Raises:
        ConfigError: No such variant; the near names are listed.
    """
    if name in VARIANTS:
        return name
    # The official command line also knows the factories by their decoder's size.
    factory = (
        name.removesuffix("_dec512d8b") if name.startswith(("mae_vit_base", "mae_vit_large", "mae_vit_huge")) else name
    )
    if factory in _FACTORY_NAMES:
        return _FACTORY_NAMES[factory]
    known = [*VARIANTS, *_FACTORY_NAMES]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.4)
    raise ConfigError(
        f"unknown variant {name!r}; there are {', '.join(VARIANTS)}",
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )


def factory_name(name: str) -> str:
    """The factory's name of a variant, as the official command line calls it."""
    name = variant_name(name)
    return next(factory for factory, variant in _FACTORY_NAMES.items() if variant == name)


def variant_config(name: str, **changes: Any) -> MAEConfig:
    """The sizes of a variant, with some of them changed (``img_size``, ``patch_size``, ``in_chans`` ...)."""
    return VARIANTS[variant_name(name)].replace(**changes)


def create_model(config: MAEConfig) -> MaskedAutoencoder:
    """Build a freshly initialised model of any size."""
    import dataclasses

    from mae.mae import MaskedAutoencoder

    return MaskedAutoencoder(**dataclasses.asdict(config))
