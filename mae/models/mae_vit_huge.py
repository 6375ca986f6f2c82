"""MAE ViT-Huge/14: encoder 1280/32/16, decoder 512/8/16 (width/blocks/heads). Paper: Table 3.

Its patches have 14 pixels a side, so an image of 224 has 256 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mae.config import MAEConfig

if TYPE_CHECKING:
    from mae.mae import MaskedAutoencoder

MAE_VIT_HUGE_PATCH14 = MAEConfig(
    patch_size=14,
    embed_dim=1280,
    depth=32,
    num_heads=16,
    decoder_embed_dim=512,
    decoder_depth=8,
    decoder_num_heads=16,
)


def mae_vit_huge_patch14(**changes: Any) -> MaskedAutoencoder:
    """A freshly initialised ViT-Huge/14; keyword arguments replace fields of ``MAEConfig``."""
    from mae.models import create_model

    return create_model(MAE_VIT_HUGE_PATCH14.replace(**changes))
