"""Settings of a run, including the architecture."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mae.checkpoints import load_checkpoint
from mae.errors import ConfigError
from mae.options import build_config
from mae.system.distributed import Ranks
from mae.training.config import PretrainConfig
from mae.training.identity import official_args
from mae.training.plan import make_plan
from mae.training.pretrain import pretrain

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 4, "decoder_embed_dim": 32, "decoder_depth": 1}
SIZES |= {"decoder_num_heads": 2, "mlp_ratio": 2.0}


def test_sizes_are_the_variants_unless_given() -> None:
    config = PretrainConfig(data=(Path(),), variant="vit_tiny", depth=3)
    assert config.changed_sizes() == {"depth": 3}
    model = config.model_config()
    assert (model.depth, model.embed_dim, model.decoder_depth) == (3, 192, 4)
    with pytest.raises(ConfigError, match="embed_dim 100 is not a multiple of num_heads 3") as caught:
        PretrainConfig(data=(Path(),), variant="vit_tiny", embed_dim=100)
    assert caught.value.hint == "num_heads 2 would do"


def test_options_of_a_probe_that_there_is_not() -> None:
    for name in ("probe_every", "probe_images"):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} 5 has no effect without --probe"):
            build_config(PretrainConfig, {"data": ["photos"], name: 5})
        assert build_config(PretrainConfig, {"data": ["photos"], "probe": "flowers", name: 5})
        assert build_config(PretrainConfig, {"data": ["photos"], "resume": "run", name: 5})  # as it was begun


@pytest.mark.parametrize(("sizes", "name"), [({}, "mae_vit_tiny_patch16"), ({"depth": 3}, "custom")])
def test_a_checkpoint_names_the_official_model_where_it_is_one(sizes: dict[str, int], name: str) -> None:
    config = PretrainConfig(data=(Path(),), variant="vit_tiny", **sizes)  # type: ignore[arg-type]
    assert official_args(config, make_plan(config, 100), Ranks())["model"] == name


def test_any_architecture_is_trained_and_repeated_by_config_toml(config: PretrainConfig, tmp_path: Path) -> None:
    own = build_config(
        PretrainConfig, {name: value for name, value in config.as_plain().items() if value is not None} | SIZES
    )
    result = pretrain(own)
    checkpoint = load_checkpoint(result.checkpoint)
    assert {name: getattr(checkpoint.config, name) for name in SIZES} == SIZES
    assert checkpoint.args["model"] == "custom"
    again = build_config(PretrainConfig, tomllib.loads((own.out / "config.toml").read_text()))
    assert again.model_config() == own.model_config()
