"""Closed forms against ``torch.utils.flop_counter`` on the meta device, to the last operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae.config import MAEConfig
from mae.mae import MaskedAutoencoder
from mae.models import VARIANTS, create_model, variant_config
from mae.profiling.flops import encoder_compute, official_compute, total
from mae.profiling.training_path import own_compute

BATCH = 3

WHOLE = {
    **{f"{name}, {ratio}": (variant_config(name), ratio) for name in VARIANTS for ratio in (0.5, 0.75, 0.9)},
    "rectangle": (variant_config("vit_base", img_size=(160, 288)), 0.75),
    "huge rectangle": (variant_config("vit_huge", img_size=(308, 140)), 0.6),
    "grey": (variant_config("vit_small", in_chans=1), 0.75),
    "four channels": (variant_config("vit_tiny", in_chans=4, patch_size=8, img_size=(64, 32)), 0.75),
    "one decoder block": (variant_config("vit_tiny", decoder_depth=1), 0.75),
    "two decoder blocks": (variant_config("vit_tiny", decoder_depth=2), 0.75),
    "other MLP": (variant_config("vit_tiny", mlp_ratio=2.68), 0.75),
}


def shallow(config: MAEConfig) -> MAEConfig:
    """The same with a first, a last and one other block, so that it takes a moment to count."""
    return config.replace(depth=min(3, config.depth), decoder_depth=min(3, config.decoder_depth))


# By default each shape is counted with few blocks, and one with all; if asked for, everything.
SHALLOW = {f"{case}, 3 blocks": (shallow(config), ratio) for case, (config, ratio) in WHOLE.items()}
CASES = SHALLOW | WHOLE
BY_DEFAULT = {case for case in SHALLOW if "vit_" not in case or "0.75" in case} | {
    "vit_tiny, 0.5, 3 blocks", "vit_huge, 0.9, 3 blocks", "vit_base, 0.75"
}  # fmt: skip
SHORT_AND_SLOW = [pytest.param(case, marks=[] if case in BY_DEFAULT else [pytest.mark.slow]) for case in CASES]


def on_meta(config: MAEConfig) -> tuple[MaskedAutoencoder, Tensor, Tensor]:
    with torch.device("meta"):
        model = create_model(config)
    imgs = torch.empty(BATCH, config.in_chans, *config.img_size, device="meta")
    return model.to("meta"), imgs, torch.empty(BATCH, config.num_patches, device="meta")


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def counted_forward_and_step(loss: Callable[[], Tensor]) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        result = loss()
        forward = int(counter.get_total_flops())
        result.backward()  # type: ignore[no-untyped-call]
    return forward, int(counter.get_total_flops())


@pytest.mark.parametrize("case", SHORT_AND_SLOW)
def test_official_forward_and_training_step(case: str) -> None:
    config, ratio = CASES[case]
    model, imgs, noise = on_meta(config)
    official = total(official_compute(config, config.num_kept(ratio)))
    counts = counted_forward_and_step(lambda: model(imgs, ratio, noise)[0])
    assert counts == (BATCH * official.forward, BATCH * official.step)


@pytest.mark.parametrize("case", SHORT_AND_SLOW)
def test_own_training_path(case: str) -> None:
    config, ratio = CASES[case]
    model, imgs, noise = on_meta(config)
    own = total(own_compute(config, config.num_kept(ratio), BATCH))
    assert counted_forward_and_step(lambda: model.pretraining_loss(imgs, ratio, noise)) == (own.forward, own.step)


@pytest.mark.parametrize(
    "case", ["vit_tiny, 0.75", "vit_huge, 0.75, 3 blocks", "rectangle, 3 blocks", "grey, 3 blocks"]
)
def test_parts_of_the_forward_pass(case: str) -> None:
    config, ratio = CASES[case]
    model, imgs, noise = on_meta(config)
    modules = official_compute(config, config.num_kept(ratio))
    encoder = total(modules).forward - total(modules, "decoder.").forward
    assert counted(lambda: model.forward_encoder(imgs, ratio, noise)) == BATCH * encoder
    whole = encoder_compute(config, embedded=config.num_patches, encoded=config.num_patches)
    assert counted(lambda: model.encode(imgs)) == BATCH * total(whole).forward


def test_every_module_has_its_own_share() -> None:
    """Names and shares are those of the model's modules; attention's products belong to ``attn``."""
    config = variant_config("vit_tiny", depth=2, decoder_depth=2)
    model, imgs, noise = on_meta(config)
    with FlopCounterMode(display=False) as counter:
        model(imgs, 0.75, noise)
    counts = {name.removeprefix("MaskedAutoencoder."): sum(ops.values()) for name, ops in counter.flop_counts.items()}
    modules = official_compute(config, config.num_kept(0.75))
    for name in ("encoder", "encoder.blocks.1", "encoder.blocks.0.attn", "decoder.blocks.1.mlp.fc2", "decoder.pred"):
        assert counts[name] == BATCH * total(modules, name).forward, name


@pytest.mark.parametrize(
    ("name", "forward", "encoder", "decoder", "step", "whole_gmacs", "published_gmacs"),
    [
        ("vit_base", 19.562, 8.817, 10.745, 58.456, 17.563, 17.58),
        ("vit_large", 41.512, 30.753, 10.759, 124.226, 61.554, 61.60),
        ("vit_huge", 97.124, 82.867, 14.257, 290.986, 167.294, 167.40),
    ],
)
def test_known_figures(
    name: str, forward: float, encoder: float, decoder: float, step: float, whole_gmacs: float, published_gmacs: float
) -> None:
    config = variant_config(name)
    modules = official_compute(config, config.num_kept(0.75))
    whole = total(encoder_compute(config, embedded=config.num_patches, encoded=config.num_patches))
    assert round(total(modules).forward / 1e9, 3) == forward
    assert round(total(modules, "decoder.").forward / 1e9, 3) == decoder
    assert round((total(modules).forward - total(modules, "decoder.").forward) / 1e9, 3) == encoder
    assert round(total(modules).step / 1e9, 3) == step
    assert round(whole.forward / 2e9, 3) == whole_gmacs
    assert whole.forward / 2e9 == pytest.approx(published_gmacs, rel=0.01)
