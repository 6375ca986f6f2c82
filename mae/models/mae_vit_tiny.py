"""MAE ViT-Tiny/16: encoder 192/12/3, decoder 192/4/3 (width/blocks/heads). Not in the paper: for small data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

MAE_VIT_TINY_PATCH16 = MAEConfig(
    patch_size=16,
    embed_dim=192,
    depth=12,
    num_heads=3,
    decoder_embed_dim=192,
    decoder_depth=4,
    decoder_num_heads=3,
)


def mae_vit_tiny_patch16(**changes: Any) -> MaskedAutoencoder:
    """A freshly initialised ViT-Tiny/16; keyword arguments replace fields of ``MAEConfig``."""
    from mae.models import create_model

    return create_model(MAE_VIT_TINY_PATCH16.replace(**changes))
