"""MAE ViT-Huge/14. Paper: Table 3. An image of 224 pixels has 256 of its patches."""

from mae.models.registry import factory_of

mae_vit_huge_patch14 = factory_of("vit_huge")
