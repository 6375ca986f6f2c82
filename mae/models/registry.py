"""The variants' sizes in one table, and the functions that build models from them. Reading a size needs no torch.

Tiny and small are not in the paper: they are for small data.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig
from mae.errors import ConfigError

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder


def _variant(patch_size: int, encoder: tuple[int, int, int], decoder: tuple[int, int, int]) -> MAEConfig:
    """A row of the table; encoder and decoder are each (width, blocks, heads)."""
    embed_dim, depth, num_heads = encoder
    decoder_embed_dim, decoder_depth, decoder_num_heads = decoder
    return MAEConfig(
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        decoder_embed_dim=decoder_embed_dim,
        decoder_depth=decoder_depth,
        decoder_num_heads=decoder_num_heads,
    )


# Paper: Section 5, Table 3; the large one is its default (Section 4).
VARIANTS = {
    "vit_tiny": _variant(16, (192, 12, 3), (192, 4, 3)),
    "vit_small": _variant(16, (384, 12, 6), (256, 4, 8)),
    "vit_base": _variant(16, (768, 12, 12), (512, 8, 16)),
    "vit_large": _variant(16, (1024, 24, 16), (512, 8, 16)),
    "vit_huge": _variant(14, (1280, 32, 16), (512, 8, 16)),
}
ENCODER_SIZES = ("embed_dim", "depth", "num_heads", "mlp_ratio")
_FACTORY_NAMES = {f"mae_{name}_patch{config.patch_size}": name for name, config in VARIANTS.items()}


def variant_name(name: str) -> str:
    """Resolve a variant's name, given as on the command line or as the official factory's name.

    Raises:
        ConfigError: There is no such variant; the hint lists similar names.
    """
    if name in VARIANTS:
        return name
    # The official command line also accepts the factories' names with the decoder's size.
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
    """Name of a variant's factory in the official code."""
    name = variant_name(name)
    return next(factory for factory, variant in _FACTORY_NAMES.items() if variant == name)


def variant_config(name: str, **changes: Any) -> MAEConfig:
    """The sizes of a variant, with some of them changed (``img_size``, ``patch_size``, ``in_chans`` ...)."""
    return VARIANTS[variant_name(name)].replace(**changes)


def create_model(config: MAEConfig | str, **changes: Any) -> MaskedAutoencoder:
    """Build a freshly initialised model of any size: ``create_model("vit_tiny", img_size=64)``.

    Args:
        config: The sizes, or the name of a variant or its factory.
        **changes: Fields of ``MAEConfig`` that replace its own.

    Raises:
        ConfigError: There is no such variant or field, or the sizes are inconsistent.
    """
    import dataclasses

    from mae.mae import MaskedAutoencoder

    sizes = VARIANTS[variant_name(config)] if isinstance(config, str) else config
    return MaskedAutoencoder(**dataclasses.asdict(sizes.replace(**changes)))


def factory_of(name: str) -> Callable[..., MaskedAutoencoder]:
    """Make the function ``mae_vit_..._patch..`` that builds a variant, named as in the official code."""

    def build(**changes: Any) -> MaskedAutoencoder:
        return create_model(name, **changes)

    build.__name__ = build.__qualname__ = factory_name(name)
    build.__module__ = f"mae.models.mae_{name}"  # for pickle and documentation
    size, patch = name.removeprefix("vit_").capitalize(), VARIANTS[name].patch_size
    build.__doc__ = f"A freshly initialised ViT-{size}/{patch}; keyword arguments replace fields of ``MAEConfig``."
    return build
