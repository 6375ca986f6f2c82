"""MAE ViT-Large/16. The paper's default (Section 4)."""

from mae.models.registry import factory_of

mae_vit_large_patch16 = factory_of("vit_large")
