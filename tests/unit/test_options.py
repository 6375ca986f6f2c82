"""One declaration of an option serves the command line, TOML and the checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mae.config import parse_size
from mae.errors import ConfigError
from mae.options import build_config, flag_name, option


@dataclasses.dataclass(frozen=True)
class Example:
    sources: tuple[Path, ...] = option(dataclasses.MISSING, "Where from.", positional=True, metavar="SOURCE")
    share: float = option(0.5, "A share.", above=0, below=1)
    count: int = option(3, "A count.", low=1, high=9)
    betas: tuple[float, float] = option((0.9, 0.95), "Two.", low=0, below=1)
    size: tuple[int, int] | None = option(None, "A size.", parse=parse_size)
    kind: str = option("auto", "A kind.", choices=("auto", "fast", "exact"))
    loud: bool = option(False, "Loud.")
    out: Path | None = option(None, "Where to.")
    resume: Path | None = option(None, "What to go on with.", typed_only=True, aliases=("go_on",))


def built(**values: Any) -> Example:
    return build_config(Example, {"sources": ["a"]} | values)


def test_values_take_their_declared_types() -> None:
    assert built(share=0.25, betas=[0, 0.5], size="8x4", out="b") == Example(
        (Path("a"),), 0.25, 3, (0.0, 0.5), (8, 4), "auto", False, Path("b")
    )
    assert isinstance(built(betas=[0, 0.5]).betas[0], float)
    assert built(sources="a").sources == (Path("a"),)
    assert built(size=None, out=None).size is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"share": 0}, "--share must be above 0 and below 1; got 0"),
        ({"share": float("nan")}, "--share must be a finite number; got nan"),
        ({"share": "much"}, "--share must be a number; got 'much'"),
        ({"share": True}, "--share must be a number; got True"),
        ({"count": 0}, "--count must be at least 1 and at most 9; got 0"),
        ({"count": 2.5}, "--count must be a whole number; got 2.5"),
        ({"count": True}, "--count must be a whole number; got True"),
        ({"betas": [0.9, 1.0]}, "--betas must be at least 0 and below 1; got 1"),
        ({"betas": [0.9]}, "--betas needs 2 values; got 1"),
        ({"size": "huge"}, "--size: wanted pixels as S or HxW"),
        ({"kind": "exakt"}, "--kind must be one of auto, fast, exact; got 'exakt'"),
        ({"loud": 1}, "--loud must be true or false; got 1"),
        ({"out": 3}, "--out must be a path; got 3"),
        ({"sources": 3}, "SOURCE must be a path; got 3"),
        ({"shair": 0.2}, "unknown option 'shair'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(**values)
    assert message in caught.value.message


def test_near_names_and_the_file_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'shair' in s\.toml") as caught:
        build_config(Example, {"shair": 1}, source="s.toml")
    assert caught.value.hint == "did you mean share?"
    with pytest.raises(ConfigError, match=r"count in s\.toml must be at least 1"):
        build_config(Example, {"sources": ["a"], "count": 0}, source="s.toml")
    with pytest.raises(ConfigError, match="missing SOURCE"):
        build_config(Example, {})
    with pytest.raises(ConfigError) as caught:
        built(kind="exakt")
    assert caught.value.hint == "did you mean exact?"


def test_flags_are_kebab_case() -> None:
    assert flag_name("mask_ratio") == "--mask-ratio"


def test_what_must_be_typed_is_refused_in_a_file() -> None:
    assert built(resume="a").resume == Path("a")
    with pytest.raises(ConfigError, match=r"resume in s\.toml is not read from a file") as caught:
        build_config(Example, {"sources": ["a"], "resume": "a"}, source="s.toml")
    assert caught.value.hint == "type --resume instead"


def test_an_older_name_of_a_field_is_still_understood() -> None:
    assert built(go_on="a").resume == Path("a")
    with pytest.raises(ConfigError, match=r"resume in s\.toml is not read from a file"):
        build_config(Example, {"sources": ["a"], "go_on": "a"}, source="s.toml")
    with pytest.raises(ConfigError, match="--go-on is the older name of --resume: give only --resume"):
        built(go_on="a", resume="a")
