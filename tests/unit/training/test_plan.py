"""The plan before a run: an example for each check, and no advice if nothing is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mae.errors import ConfigError, DataError
from mae.options import build_config, preset_values
from mae.training.classifier_config import LinprobeConfig, RunConfig
from mae.training.config import PretrainConfig
from mae.training.plan import Advice, check_plan, make_plan
from mae.training.presets import PRESETS


def config(**changes: object) -> PretrainConfig:
    return PretrainConfig(data=(Path("photos"),), **changes)  # type: ignore[arg-type]


def checks(settings: PretrainConfig, images: int) -> dict[str, Advice]:
    return {advice.check: advice for advice in check_plan(settings, make_plan(settings, images))}


def test_forty_photographs_with_the_defaults() -> None:
    """ViT-B for 800 steps at a learning rate of 2e-5: all problems are named, each with advice."""
    found = checks(config(), 40)
    assert set(found) == {"steps", "learning rate", "model size"}
    assert "800 steps in all" in found["steps"].message
    assert found["steps"].options == "--epochs 1000"
    assert "the learning rate is 2.3e-05" in found["learning rate"].message
    assert found["learning rate"].options == "--preset small, or --lr 0.0002"
    assert "112 million parameters for 40 images are 2,791,392 per image" in found["model size"].message
    assert found["model size"].options.startswith("--preset small, or --variant vit_tiny")


def test_the_recipe_on_imagenet_is_left_alone() -> None:
    for variant in ("vit_base", "vit_large", "vit_huge"):
        assert check_plan(config(variant=variant), make_plan(config(accum_iter=64), 1_281_167)) == ()


@pytest.mark.parametrize("images", [300, 1000, 5000])
def test_the_preset_is_left_alone_on_what_it_is_for(images: int) -> None:
    settings = build_config(PretrainConfig, preset_values("small", PRESETS) | {"data": ["photos"]})
    assert check_plan(settings, make_plan(settings, images)) == ()


@pytest.mark.parametrize(
    ("changes", "images", "check", "options"),
    [
        ({"warmup_epochs": 40.0, "epochs": 100}, 10**6, "warm-up", "--warmup-epochs 5"),
        ({"accum_iter": 64, "epochs": 10, "warmup_epochs": 0.0}, 40_960, "steps", "--accum-iter 1 or --epochs 100"),
        ({}, 10**6, "learning rate", "--accum-iter 64 for the recipe's batch, or --lr 0.0003"),
        ({"base_lr": 1e-3, "accum_iter": 64}, 10**6, "learning rate", "--lr 0.002 or a lower --base-lr"),
        ({"variant": "vit_large"}, 20_000, "model size", "--variant vit_small, or --init from pre-trained weights"),
        ({"variant": "vit_small"}, 20, "model size", "--preset small, or --variant vit_tiny"),
    ],
)
def test_what_each_check_is_for(changes: dict[str, object], images: int, check: str, options: str) -> None:
    found = checks(config(**changes), images)
    assert found[check].options.startswith(options)


@pytest.mark.parametrize(
    ("changes", "images", "check"),
    [
        ({"warmup_epochs": 20.0, "epochs": 100}, 10**6, "warm-up"),
        ({"epochs": 10, "warmup_epochs": 0.0}, 6_400, "steps"),  # 1,000 of them
        ({"lr": 1e-5}, 10**6, "learning rate"),  # given, so intended
        ({"init": Path("mae_pretrain_vit_base.pth")}, 40, "learning rate"),
        ({"init": Path("mae_pretrain_vit_base.pth")}, 40, "model size"),
        ({"variant": "vit_tiny"}, 15, "model size"),  # there is no smaller variant
        ({"accum_iter": 4}, 10**6, "learning rate"),  # 1.5e-4
    ],
)
def test_what_each_check_lets_pass(changes: dict[str, object], images: int, check: str) -> None:
    assert check not in checks(config(**changes), images)


def test_days_on_a_cpu() -> None:
    plan = make_plan(config(), 40)

    def found(hours: float, device: str = "cpu", images: int = 40) -> Advice | None:
        advice = check_plan(config(device=device), dataclasses.replace(plan, images=images), hours * 3600)
        return next((one for one in advice if one.check == "time"), None)

    advice = found(15)
    assert advice is not None
    assert advice.message == "about 15 hours on a CPU"
    assert "--preset small, or --epochs 640 for 12 hours" in advice.options
    assert found(11) is found(1500, "cuda") is None
    many = found(15, images=10**6)
    assert many is not None
    assert "--preset" not in many.options


def test_the_batch_norm_of_a_linear_probe_gets_two_images() -> None:
    with pytest.raises(ConfigError, match="--batch-size must be at least 2; got 1"):
        build_config(LinprobeConfig, {"data": ["flowers"], "batch_size": 1})
    probing = LinprobeConfig(data=(Path("flowers"),), batch_size=4)
    assert make_plan(probing, 4, processes=2).global_batch_size == 4
    with pytest.raises(DataError, match="3 images are too few for 2 processes with at least 2 images each"):
        make_plan(probing, 3, processes=2)
    assert make_plan(config(), 3, processes=2).global_batch_size == 2


@pytest.mark.parametrize(("kind", "processes"), [(PretrainConfig, 3), (PretrainConfig, 8), (LinprobeConfig, 4)])
def test_a_resumed_batch_that_the_processes_cannot_share_is_refused(kind: type[RunConfig], processes: int) -> None:
    """Of four images: not equally, none for most, and too few for the batch norm."""
    with pytest.raises(ConfigError, match=rf"a batch of 4 images cannot be shared equally by {processes} processes"):
        make_plan(kind(data=(Path("flowers"),)), 40, processes=processes, global_batch_size=4)
    assert make_plan(kind(data=(Path("flowers"),)), 40, processes=2, global_batch_size=4).global_batch_size == 4
