"""All valid settings are unchanged after they are written to and read from a TOML file."""

from __future__ import annotations

import dataclasses
import string
import tempfile
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mae.comparison.config import REFERENCES, CompareConfig
from mae.config import MAEConfig
from mae.errors import ConfigError
from mae.exporting.config import ExportConfig
from mae.io.toml import read_toml
from mae.models import VARIANTS
from mae.options import build_config, flag_name, option_of
from mae.profiling.accelerators import ACCELERATORS
from mae.profiling.config import ProfileConfig
from mae.reconstruction.config import ReconstructConfig
from mae.training.config import PretrainConfig

CONFIGS = [PretrainConfig, ReconstructConfig, ProfileConfig, CompareConfig, ExportConfig]
# Restrictions besides types and bounds.
_WORDS = {"variant": st.sampled_from([*VARIANTS]), "gpu": st.sampled_from([*ACCELERATORS])}
_WORDS |= {"reference": st.sampled_from(REFERENCES)}
_SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(lambda size: (size[0] * 224, size[1] * 224))
_PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20).map(Path)


def values_of(config_class: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Values for some of the fields and for all that have no default."""
    hints = typing.get_type_hints(config_class)
    required, others = {}, {}
    for field in dataclasses.fields(config_class):
        if option_of(field).typed_only:  # not allowed in files
            continue
        values = _value(field.name, hints[field.name], option_of(field))
        (required if field.default is dataclasses.MISSING else others)[field.name] = values
    return st.fixed_dictionaries(required, optional=others)


def _value(name: str, hint: Any, declared: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part not in (type(None), Any))
    if typing.get_origin(hint) is tuple:
        if name == "image_size":
            return _SIZES
        parts = typing.get_args(hint)
        one = _value(name, parts[0], declared)
        if parts[1] is Ellipsis and name == "log_to":  # a tracker that is named twice counts once
            return st.lists(one, max_size=3, unique=True).map(tuple)
        if parts[1] is Ellipsis:
            return st.lists(one, min_size=1, max_size=3).map(tuple)
        return st.tuples(one, one).map(lambda two: tuple(sorted(two)))
    if hint is str:
        return st.sampled_from(declared.choices) if declared.choices else _WORDS[name]
    if hint is Path:
        return _PATHS.map(lambda path: path.with_name("x.png") if name == "out" else path)
    if hint is bool:
        return st.booleans()
    low = max(bound for bound in (declared.low, declared.above, 0) if bound is not None)
    high = min(bound for bound in (declared.high, declared.below, 10**6) if bound is not None)
    if hint is int:
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=declared.above is not None, exclude_max=declared.below is not None)


def plain(value: Any) -> Any:
    """The value as in TOML."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


@pytest.mark.parametrize("config_class", CONFIGS)
@settings(suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow], max_examples=40)
@given(st.data())
def test_settings_come_back(config_class: Any, data: st.DataObject) -> None:
    values = data.draw(values_of(config_class))
    try:
        config = build_config(config_class, values)
    except ConfigError:
        assume(False)
    given_values = {name: plain(value) for name, value in dataclasses.asdict(config).items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.toml"
        path.write_text(tomli_w.dumps(given_values), encoding="utf-8", newline="")
        again = build_config(config_class, read_toml(path, "--config"), source=str(path))
    assert again == config
    for name, value in values.items():
        assert getattr(again, name) == value


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_field_is_an_option_that_can_be_set(config_class: Any) -> None:
    for field in dataclasses.fields(config_class):
        assert option_of(field).help.endswith((".", "?")), field.name
        assert flag_name(field.name) == f"--{field.name.replace('_', '-')}"


@given(st.text(string.ascii_letters + "_-", min_size=1, max_size=30), st.sampled_from(CONFIGS))
def test_an_unknown_name_is_refused(name: str, config_class: Any) -> None:
    assume(name not in {field.name for field in dataclasses.fields(config_class)})
    with pytest.raises(ConfigError, match="unknown option"):
        build_config(config_class, {name: 1})


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)), patch=st.integers(1, 32), chans=st.integers(1, 9),
    widths=st.tuples(st.integers(1, 16), st.integers(1, 16)), heads=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    depths=st.tuples(st.integers(1, 24), st.integers(1, 12)), ratio=st.floats(0.25, 8), normalised=st.booleans(),
)  # fmt: skip
def test_sizes_come_back(
    grid: tuple[int, int], patch: int, chans: int, widths: tuple[int, int], heads: tuple[int, int],
    depths: tuple[int, int], ratio: float, normalised: bool,
) -> None:  # fmt: skip
    config = MAEConfig(
        (grid[0] * patch, grid[1] * patch), patch, chans, 4 * heads[0] * widths[0], depths[0], heads[0],
        4 * heads[1] * widths[1], depths[1], heads[1], ratio, normalised,
    )  # fmt: skip
    import tomllib

    plainly = tomllib.loads(tomli_w.dumps(dataclasses.asdict(config)))
    assert MAEConfig(**plainly | {"img_size": tuple(plainly["img_size"])}) == config
    assert config.grid == grid
    assert config.num_patches * config.patch_dim == config.img_size[0] * config.img_size[1] * chans
