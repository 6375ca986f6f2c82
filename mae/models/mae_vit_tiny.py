"""MAE ViT-Tiny/16. Not in the paper: for small data."""

from mae.models.registry import factory_of

mae_vit_tiny_patch16 = factory_of("vit_tiny")
