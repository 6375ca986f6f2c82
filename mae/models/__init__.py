"""The published sizes and two small ones, by name. The table is in ``registry``; each variant has a small file."""

from mae.models.mae_vit_base import mae_vit_base_patch16 as mae_vit_base_patch16
from mae.models.mae_vit_huge import mae_vit_huge_patch14 as mae_vit_huge_patch14
from mae.models.mae_vit_large import mae_vit_large_patch16 as mae_vit_large_patch16
from mae.models.mae_vit_small import mae_vit_small_patch16 as mae_vit_small_patch16
from mae.models.mae_vit_tiny import mae_vit_tiny_patch16 as mae_vit_tiny_patch16
from mae.models.registry import VARIANTS as VARIANTS
from mae.models.registry import create_model as create_model
from mae.models.registry import factory_name as factory_name
from mae.models.registry import variant_config as variant_config
from mae.models.registry import variant_name as variant_name
