"""The registry: names, similar names, sizes and factories."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch

import mae
from mae.config import MOST_PATCHES, MAEConfig, format_size, num_kept, parse_size
from mae.errors import ConfigError
from mae.models import VARIANTS, factory_name, variant_config, variant_name


def test_names() -> None:
    assert list(VARIANTS) == ["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
    assert [factory_name(name) for name in VARIANTS] == [
        "mae_vit_tiny_patch16",
        "mae_vit_small_patch16",
        "mae_vit_base_patch16",
        "mae_vit_large_patch16",
        "mae_vit_huge_patch14",
    ]
    for name in VARIANTS:
        assert variant_name(factory_name(name)) == name
    assert variant_name("mae_vit_base_patch16_dec512d8b") == "vit_base"
    for wrong, near in (
        ("vit_bse", "vit_base"),
        ("ViT-Large", "vit_large"),
        ("mae_vit_huge_patch16", "mae_vit_huge_patch14"),
    ):
        with pytest.raises(ConfigError, match=f"unknown variant '{wrong}'; there are vit_tiny") as caught:
            variant_name(wrong)
        assert caught.value.hint is not None
        assert near in caught.value.hint


def test_small_sizes() -> None:
    tiny, small = VARIANTS["vit_tiny"], VARIANTS["vit_small"]
    assert (tiny.embed_dim, tiny.depth, tiny.num_heads) == (192, 12, 3)
    assert (tiny.decoder_embed_dim, tiny.decoder_depth, tiny.decoder_num_heads) == (192, 4, 3)
    assert (small.embed_dim, small.depth, small.num_heads) == (384, 12, 6)
    assert (small.decoder_embed_dim, small.decoder_depth, small.decoder_num_heads) == (256, 4, 8)


def test_factories_take_changes() -> None:
    with torch.device("meta"):
        model = mae.mae_vit_huge_patch14(img_size=(28, 56), in_chans=5, norm_pix_loss=True)
    assert model.config == variant_config("vit_huge", img_size=(28, 56), in_chans=5, norm_pix_loss=True)
    assert model.config.grid == (2, 4)
    assert model.config.patch_dim == 14 * 14 * 5


def test_kept_patches() -> None:
    assert MAEConfig().num_kept(0.75) == 49
    assert VARIANTS["vit_huge"].num_kept(0.75) == 64
    assert MAEConfig(img_size=(48, 48)).num_kept(0.5) == 4


@pytest.mark.parametrize("patches", [1, 4, 9, 10, 49, 196, 256, 4096, MOST_PATCHES])
def test_a_mask_ratio_that_leaves_no_patch_is_refused_with_one_that_does(patches: int) -> None:
    with pytest.raises(ConfigError, match=f"leaves none of {patches} patches visible") as caught:
        num_kept(patches, 1 - 1e-9)
    assert num_kept(patches, float(str(caught.value.hint).rpartition(" ")[2])) >= 1


@pytest.mark.parametrize("ratio", [0.0, -1.0, 0.001, float("nan"), float("inf")])
def test_an_mlp_has_hidden_values(ratio: float) -> None:
    with pytest.raises(ConfigError, match=f"mlp_ratio {ratio:g} "):
        MAEConfig(mlp_ratio=ratio)
    assert MAEConfig(mlp_ratio=1 / 512).mlp_ratio == 1 / 512


@pytest.mark.parametrize(
    ("given", "size"),
    [(224, (224, 224)), ("224", (224, 224)), ("64x96", (64, 96)), ("64 X 96", (64, 96)), ([8, 16], (8, 16))],
)
def test_sizes_in_every_spelling(given: object, size: tuple[int, int]) -> None:
    assert parse_size(given) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("given", ["", "x", "64x", "0", "-8", "8x8x8", 0, -1, 1.5, True, [8, 8, 8], [8.0, 8.0], None])
def test_sizes_that_are_none(given: object) -> None:
    with pytest.raises(ValueError, match="wanted pixels as S or HxW"):
        parse_size(given)


def test_the_package_offers_its_names() -> None:
    assert {"MaskedAutoencoder", "from_pretrained", "load_checkpoint", "MAEConfig"} <= set(dir(mae))
    for name in mae.__all__:
        assert getattr(mae, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = mae.nothing


def test_each_variant_has_a_file_with_its_factory() -> None:
    for name in VARIANTS:
        factory = getattr(importlib.import_module(f"mae.models.mae_{name}"), factory_name(name))
        assert factory is getattr(mae, factory_name(name))
        assert pickle.loads(pickle.dumps(factory)) is factory
        assert f"ViT-{name.removeprefix('vit_').capitalize()}/{VARIANTS[name].patch_size}" in factory.__doc__
        with torch.device("meta"):
            assert factory(depth=1, decoder_depth=1).config == variant_config(name, depth=1, decoder_depth=1)


def test_the_published_sizes() -> None:
    assert VARIANTS["vit_base"] == MAEConfig()
    large, huge = VARIANTS["vit_large"], VARIANTS["vit_huge"]
    assert (large.patch_size, large.embed_dim, large.depth, large.num_heads) == (16, 1024, 24, 16)
    assert (huge.patch_size, huge.embed_dim, huge.depth, huge.num_heads) == (14, 1280, 32, 16)
    for one in (large, huge):
        assert (one.decoder_embed_dim, one.decoder_depth, one.decoder_num_heads) == (512, 8, 16)
