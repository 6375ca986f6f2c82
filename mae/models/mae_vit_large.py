"""MAE ViT-Large/16: encoder 1024/24/16, decoder 512/8/16 (width/blocks/heads). The paper's default (Section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

MAE_VIT_LARGE_PATCH16 = MAEConfig(
    patch_size=16,
    embed_dim=1024,
    depth=24,
    num_heads=16,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)


def mae_vit_large_patch16(**changes: Any) -> MaskedAutoencoder:
    """A freshly initialised ViT-Large/16; keyword arguments replace fields of ``MAEConfig``."""
    from mae.models import create_model

    return create_model(MAE_VIT_LARGE_PATCH16.replace(**changes))
