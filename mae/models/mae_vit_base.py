"""MAE ViT-Base/16. Paper: Section 5, Table 3."""

from mae.models.registry import factory_of

mae_vit_base_patch16 = factory_of("vit_base")
