"""MAE ViT-Small/16. Not in the paper: between tiny and base."""

from mae.models.registry import factory_of

mae_vit_small_patch16 = factory_of("vit_small")
