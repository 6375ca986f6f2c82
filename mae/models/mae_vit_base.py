"""MAE ViT-Base/16: encoder 768/12/12, decoder 512/8/16 (width/blocks/heads). Paper: Section 5, Table 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

MAE_VIT_BASE_PATCH16 = MAEConfig(
    patch_size=16,
    embed_dim=768,
    depth=12,
    num_heads=12,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)


def mae_vit_base_patch16(**changes: Any) -> MaskedAutoencoder:
    """A freshly initialised ViT-Base/16; keyword arguments replace fields of ``MAEConfig``."""
    from mae.models import create_model

    return create_model(MAE_VIT_BASE_PATCH16.replace(**changes))
