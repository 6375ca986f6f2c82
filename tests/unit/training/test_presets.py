"""Presets replace defaults and nothing else."""

from __future__ import annotations

import pytest

from mae.errors import ConfigError
from mae.options import build_config, flag_name, merge_layers, preset_values
from mae.training.config import PretrainConfig
from mae.training.presets import PRESETS
from tests.e2e.documents import ROOT


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_used_and_is_documented(name: str) -> None:
    values = preset_values(name, PRESETS)
    config = build_config(PretrainConfig, values | {"data": ["photos"]})
    assert config == PretrainConfig(**{field: getattr(config, field) for field in values}, data=config.data)
    page = (ROOT / "docs" / "choosing.md").read_text()
    assert f"--preset {name}" in page
    for field in values:
        assert f"`{flag_name(field)}" in page, f"docs/choosing.md says nothing of {flag_name(field)} in --preset {name}"


def test_a_preset_is_a_copy() -> None:
    preset_values("small", PRESETS).clear()
    assert preset_values("small", PRESETS)["variant"] == "vit_tiny"


def test_no_such_preset() -> None:
    with pytest.raises(ConfigError, match="--preset must be one of small, fast; got 'smal'") as caught:
        preset_values("smal", PRESETS)
    assert caught.value.hint == "did you mean small?"
    for name in (["small"], {"name": "small"}, 5):  # as a TOML file may have it
        with pytest.raises(ConfigError, match="--preset must be one of small, fast; got"):
            preset_values(name, PRESETS)


def test_later_layers_win_and_a_rate_drops_the_other_kind_of_rate() -> None:
    def merged(*layers: dict[str, object]) -> dict[str, object]:
        return merge_layers(PretrainConfig, layers)

    assert merged({"epochs": 1, "seed": 2}, {"epochs": 3}) == {"epochs": 3, "seed": 2}
    assert merged({"lr": 1e-3}, {"base_lr": 1e-4}) == {"base_lr": 1e-4}
    assert merged({"lr": 1e-3}, {"base_lr": 1e-4}, {"lr": 2e-3}) == {
        "base_lr": 1e-4,
        "lr": 2e-3,
    }  # lr is not scaled
    assert merged({"lr": 1e-3, "base_lr": 1e-4}, {"epochs": 1}) == {
        "lr": 1e-3,
        "base_lr": 1e-4,
        "epochs": 1,
    }  # a file's
