"""MAE ViT-Small/16: encoder 384/12/6, decoder 256/4/8 (width/blocks/heads). Not in the paper: between tiny and base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

MAE_VIT_SMALL_PATCH16 = MAEConfig(
    patch_size=16,
    embed_dim=384,
    depth=12,
    num_heads=6,
    decoder_embed_dim=256,
    decoder_depth=4,
    decoder_num_heads=8,
)


def mae_vit_small_patch16(**changes: Any) -> MaskedAutoencoder:
    """A freshly initialised ViT-Small/16; keyword arguments replace fields of ``MAEConfig``."""
    from mae.models import create_model

    return create_model(MAE_VIT_SMALL_PATCH16.replace(**changes))
