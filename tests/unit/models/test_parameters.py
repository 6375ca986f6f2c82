"""Closed formulas of parameter counts against the model's tensors and the published counts."""

from __future__ import annotations

import pytest
import torch

from mae.config import MAEConfig
from mae.models import VARIANTS, create_model, variant_config
from mae.models.parameters import count_parameters, module_parameters

CASES = {
    **{name: variant_config(name) for name in VARIANTS},
    "rectangle": variant_config("vit_base", img_size=(160, 288)),
    "four channels": variant_config("vit_tiny", in_chans=4, patch_size=8, img_size=64),
    "one channel": variant_config("vit_huge", in_chans=1),
    "other MLP": variant_config("vit_tiny", mlp_ratio=2.7),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_equal_the_models(case: str) -> None:
    config: MAEConfig = CASES[case]
    with torch.device("meta"):
        model = create_model(config)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    counts = count_parameters(config)
    assert counts.total == sum(tensor.numel() for tensor in tensors.values())
    assert counts.trainable == sum(parameter.numel() for parameter in model.parameters())
    assert counts.decoder == sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("decoder."))
    assert counts.encoder == counts.total - counts.decoder
    modules = module_parameters(config)
    for name, tensor in tensors.items():
        owner = name if name in modules else name.rsplit(".", 1)[0]
        modules[owner] -= tensor.numel()
    assert set(modules.values()) == {0}


@pytest.mark.parametrize(
    ("name", "total", "trainable", "encoder", "decoder"),
    [
        ("vit_base", 111_907_840, 111_655_680, 85_798_656, 26_109_184),
        ("vit_large", 329_541_888, 329_239_296, 303_301_632, 26_240_256),
        ("vit_huge", 657_074_508, 656_613_964, 630_764_800, 26_309_708),
    ],
)
def test_published_counts(name: str, total: int, trainable: int, encoder: int, decoder: int) -> None:
    counts = count_parameters(variant_config(name))
    assert (counts.total, counts.trainable, counts.encoder, counts.decoder) == (total, trainable, encoder, decoder)
