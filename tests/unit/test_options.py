"""An option is declared once for the command line, TOML and the checks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mae.config import parse_size
from mae.errors import ConfigError
from mae.options import Preset, build_config, flag_name, in_python, option, plain_call


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
        ({"count": 2**70}, "--count must be at most 9; got a number of 71 bits"),
        ({"count": -(2**70)}, "--count must be at least 1; got a number of 71 bits"),
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


@dataclasses.dataclass(frozen=True)
class Recorded:
    config: Example
    told: list[int]
    notes: tuple[str, ...] = ()


def recorded(config: Example, on_count: Callable[[int], None] = lambda count: None) -> Recorded:
    """Count what was asked for.

    Where ``config.loud`` it is told.

    Args:
        config: What to do.
        on_count: Told the count,
            once.

    Raises:
        ConfigError: The count is 9.
    """
    on_count(config.count)
    if config.count == 9:
        raise ConfigError("--count 9 and --no-loud do not go together", hint="take --count 8 or --kind exact: --help")
    return Recorded(config, [config.count], notes=(f"--share {config.share:g} was used; --deep was not",))


call = plain_call(
    Example,
    recorded,
    defaults={"out": Path("here")},
    presets={"many": Preset("many", {"count": 8, "share": 0.1})},
    saved=lambda given: {"sources": ("saved",), "count": 6} if given.get("resume") else {},
)


def test_a_plain_call_fills_the_config() -> None:
    assert call("a", count=4).config == dataclasses.replace(built(), count=4, out=Path("here"))
    assert call("a", "b").config.sources == call(["a", Path("b")]).config.sources == (Path("a"), Path("b"))
    assert call(sources="a", size=8, betas=(0.5, 0)).config.size == (8, 8)
    assert call("a", out=None).config.out is None


def test_what_a_plain_call_is_not_given_comes_from_a_preset_or_a_run() -> None:
    config = call("a", preset="many", share=0.2).config
    assert (config.count, config.share, config.out) == (8, 0.2, Path("here"))
    config = call(resume="run", share=0.2).config
    assert (config.sources, config.count, config.share) == ((Path("saved"),), 6, 0.2)
    assert call(resume="run", count=1).config.count == 1
    assert call(go_on="run").config == call(resume="run").config
    with pytest.raises(ConfigError, match=r"^preset many: a resumed run keeps its settings"):
        call(resume="run", preset="many")
    with pytest.raises(ConfigError, match=r"^preset must be one of many; got 'few'"):
        call("a", preset="few")


def test_a_plain_call_takes_a_config_and_callbacks() -> None:
    told: list[int] = []
    config = built(count=5)
    assert call(config).config is config
    assert call(config, told.append).config.out is None
    call("a", count=7, on_count=told.append)
    assert told == [5, 7]


def test_a_plain_call_speaks_of_fields() -> None:
    with pytest.raises(ConfigError) as caught:
        call("a", count=9)
    assert caught.value.message == str(caught.value) == "count=9 and loud=False do not go together"
    assert caught.value.hint == 'take count=8 or kind="exact": help(mae.recorded)'
    assert caught.value.__notes__ == [f"hint: {caught.value.hint}"]
    assert call("a").notes == call(built()).notes == ("share=0.5 was used; --deep was not",)
    for values, message in (
        ({"share": 2}, "share must be above 0 and below 1; got 2"),
        ({"count": None}, "count must be a whole number; got None"),
        ({"shair": 2}, "unknown option 'shair'"),
        ({}, "missing sources"),
    ):
        with pytest.raises(ConfigError) as caught:
            call(**({"sources": "a"} | values if values else {}))
        assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--betas 0.9 0.95: too high", "betas 0.9 0.95: too high"),
        ("--out - is standard output", "out - is standard output"),
        ("take --share 1e-05.", "take share=1e-05."),
        ("(--kind fast, --share)", '(kind="fast", share)'),
        ("cannot read /data/--share/SOURCE/x--kind.png", "cannot read /data/--share/SOURCE/x--kind.png"),
        ("`maecli count --share 0.5` counts", "`maecli count --share 0.5` counts"),
        ("SOURCE must be a path", "sources must be a path"),
        ("--go-on is the older name of --resume", "go_on is the older name of resume"),
        ("the SOURCE is a folder", "the SOURCE is a folder"),
    ],
)
def test_messages_in_python(text: str, expected: str) -> None:
    assert in_python(text, Example, "mae.count") == expected


def test_a_plain_call_tells_what_it_takes() -> None:
    parameters = inspect.signature(call).parameters
    assert str(parameters["sources"]) == "*sources: str | pathlib.Path"
    assert parameters["count"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (parameters["count"].default, parameters["out"].default) == (3, Path("here"))
    assert list(parameters)[-2:] == ["preset", "on_count"]
    assert call.__doc__ is not None
    for line in (
        "Where ``loud`` it is told.",
        "    count: A count. Default: 3.",
        "    out: Where to. Default: here.",
        "    preset: Name of a preset, whose values replace defaults: many: many.",
        "    on_count: Told the count,\n        once.",
        "Raises:\n    ConfigError: The count is 9.",
    ):
        assert line in call.__doc__
    assert "config:" not in call.__doc__


def test_a_plain_call_of_one_thing_takes_one() -> None:
    @dataclasses.dataclass(frozen=True)
    class One:
        file: Path = option(dataclasses.MISSING, "Which.", positional=True, metavar="FILE")

    def look(config: One) -> Path:
        return config.file

    assert plain_call(One, look)("a") == plain_call(One, look)(file="a") == Path("a")
    assert str(inspect.signature(plain_call(One, look))) == "(file: str | pathlib.Path) -> 'Path'"
    with pytest.raises(TypeError, match="takes one positional argument, file; got 2"):
        plain_call(One, look)("a", "b")
    with pytest.raises(TypeError, match="got file twice"):
        plain_call(One, look)("a", file="b")
