"""Schedule, plan and parameter groups, computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.errors import ConfigError
from mae.models import create_model, variant_config
from mae.training.config import PretrainConfig
from mae.training.optim import parameter_groups
from mae.training.plan import make_plan
from mae.training.schedule import lr_at, scaled_lr


def config(**changes: object) -> PretrainConfig:
    return PretrainConfig(data=(Path("images"),), **changes)  # type: ignore[arg-type]


def test_schedule_by_hand() -> None:
    recipe = {"lr": 2.4e-3, "min_lr": 1e-5, "warmup_epochs": 40, "epochs": 800}
    assert lr_at(0, **recipe) == 0
    assert lr_at(10, **recipe) == pytest.approx(0.6e-3)
    assert lr_at(40, **recipe) == pytest.approx(2.4e-3)
    assert lr_at(420, **recipe) == pytest.approx((2.4e-3 + 1e-5) / 2)
    assert lr_at(800, **recipe) == pytest.approx(1e-5)
    assert scaled_lr(1.5e-4, 4096) == pytest.approx(2.4e-3)


@pytest.mark.parametrize("warmup_epochs", [39.5, 40, 80])
def test_the_rate_at_the_end_of_a_run_is_that_of_its_last_moment(warmup_epochs: float) -> None:
    """A finished run that is prolonged is told the rate that it ended with, also one of only a warm-up."""
    end = lr_at(40, lr=1e-3, min_lr=1e-5, warmup_epochs=warmup_epochs, epochs=40)
    assert end == pytest.approx({39.5: 1e-5, 40: 1e-3, 80: 5e-4}[warmup_epochs])


def test_the_documented_recipe_is_the_default() -> None:
    recipe = config()
    plan = make_plan(config(batch_size=64, accum_iter=64), 1_281_167)
    assert plan.effective_batch_size == 4096
    assert plan.lr == pytest.approx(2.4e-3)
    assert (recipe.epochs, recipe.warmup_epochs, recipe.weight_decay, recipe.betas) == (800, 40, 0.05, (0.9, 0.95))
    assert (recipe.mask_ratio, recipe.norm_pix_loss, recipe.crop_scale, recipe.min_lr) == (0.75, True, (0.2, 1.0), 0)


def test_the_tail_of_an_epoch_is_a_step() -> None:
    plan = make_plan(config(batch_size=4, accum_iter=2), 21)
    assert (plan.batches_per_epoch, plan.steps_per_epoch) == (5, 3)
    assert plan.warnings == ()
    short = make_plan(config(batch_size=4, accum_iter=2, epochs=2, warmup_epochs=0), 21)
    assert [short.batches_left(step) for step in range(7)] == [10, 8, 6, 5, 3, 1, 0]


def test_fewer_images_than_a_batch() -> None:
    plan = make_plan(config(batch_size=64, accum_iter=4), 15)
    assert (plan.global_batch_size, plan.accum_iter, plan.effective_batch_size, plan.steps_per_epoch) == (15, 1, 15, 1)
    assert plan.lr == pytest.approx(1.5e-4 * 15 / 256)
    assert "15 images do not fill a batch of 64" in plan.warnings[0]
    assert make_plan(config(batch_size=15), 15).warnings == ()


def test_a_warm_up_that_outlasts_the_run_is_warned_of() -> None:
    assert any("is longer than the run" in warning for warning in make_plan(config(epochs=40), 100).warnings)
    assert not make_plan(config(epochs=41), 100).warnings


def test_an_end_above_the_peak_is_warned_of() -> None:
    (warning,) = make_plan(config(min_lr=1e-4), 64).warnings  # the peak follows from the batch
    assert warning == "--min-lr 0.0001 is above the peak learning rate 3.75e-05"


def test_parameter_groups() -> None:
    model = create_model(variant_config("vit_tiny", img_size=32, patch_size=16, depth=1, decoder_depth=1))
    without, decayed = parameter_groups(model, 0.05)
    assert (without["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    names = {id(parameter): name for name, parameter in model.official_parameters()}
    assert [names[id(p)] for p in decayed["params"]][:3] == ["cls_token", "mask_token", "patch_embed.proj.weight"]
    for group in (without, decayed):
        plain = {names[id(p)].endswith(".bias") or "norm" in names[id(p)] for p in group["params"]}
        assert plain == {group is without}
    assert len(without["params"]) + len(decayed["params"]) == len(list(model.parameters()))


def test_settings_that_cannot_work() -> None:
    for changes, message in (
        ({"image_size": (100, 100)}, "not a whole number of patches"),
        ({"mask_ratio": 0.999}, "leaves none"),
        ({"mask_ratio": 1e-17}, "masks no patch"),
        ({"crop_scale": (0.9, 0.2)}, "--crop-scale"),
        ({"crop_ratio": (2.0, 1.0)}, "--crop-ratio"),
        ({"lr": 1e-3, "min_lr": 1e-2}, "--min-lr"),
        ({"variant": "vit_bas"}, "unknown variant 'vit_bas'"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(**changes)
