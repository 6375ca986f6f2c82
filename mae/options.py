"""Options declared once: a frozen dataclass whose fields carry help, bounds and a parser.

The command line turns the fields into ``--kebab-case`` options, a TOML file holds the same names with
underscores, and ``build_config`` checks whatever came from either, so that a value is refused in the
same words wherever it stood. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mae.errors import ConfigError

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Option:
    """What a config field tells the command line and the checker."""

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None
    metavar: str | None = None
    flags: str | None = None
    default_text: str | None = None
    panel: str | None = None
    positional: bool = False


def option(default: Any, help: str, **details: Any) -> Any:
    """A dataclass field that is also an option.

    Args:
        default: The field's default value; ``dataclasses.MISSING`` makes it required.
        help: One line for ``--help`` and the generated reference.
        **details: The other fields of ``Option``; ``low``/``high`` are inclusive bounds,
            ``above``/``below`` exclusive ones.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **details)})


def option_of(field: dataclasses.Field[Any]) -> Option:
    """The ``Option`` that a config field was declared with."""
    declared: Option = field.metadata["option"]
    return declared


def flag_name(field_name: str) -> str:
    """``mask_ratio`` -> ``--mask-ratio``."""
    return "--" + field_name.replace("_", "-")


def build_config(config_class: type[Config], values: Mapping[str, Any], *, source: str = "") -> Config:
    """Build a config from plain values, checking names, types and bounds.

    Args:
        config_class: A frozen dataclass whose fields were made by ``option``.
        values: Field name to value; a field that is absent takes its default.
        source: Named in messages, for instance the path of a TOML file.

    Raises:
        ConfigError: An unknown name, a missing one, a wrong type or a value out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config_class))}
    where = f" in {source}" if source else ""
    hints = typing.get_type_hints(config_class)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=3)
            raise ConfigError(
                f"unknown option {name!r}{where}",
                hint=f"did you mean {', '.join(near)}?" if near else "see --help for the names",
            )
        declared = option_of(fields[name])
        label = f"{name}{where}" if source else ((declared.metavar or name) if declared.positional else flag_name(name))
        checked[name] = _check(label, value, hints[name], declared)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in checked:
            declared = option_of(field)
            label = declared.metavar or name if declared.positional else flag_name(name)
            raise ConfigError(f"missing {label}{where}", hint="see --help for an example")
    return config_class(**checked)


def _check(label: str, value: Any, hint: Any, declared: Option) -> Any:
    if value is None:
        return None
    if declared.parse is not None:
        try:
            value = declared.parse(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{label}: {error}") from None
    else:
        value = _coerce(label, value, hint)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_bounds(label, number, declared)
    for word in value if isinstance(value, tuple) else (value,):
        if declared.choices and word not in declared.choices:
            near = difflib.get_close_matches(str(word), declared.choices, n=2, cutoff=0.5)
            raise ConfigError(
                f"{label} must be one of {', '.join(declared.choices)}; got {word!r}",
                hint=f"did you mean {' or '.join(near)}?" if near else None,
            )
    return value


def _check_bounds(label: str, number: float, declared: Option) -> None:
    wanted = []
    good = math.isfinite(number)
    if declared.low is not None:
        wanted.append(f"at least {declared.low:g}")
        good &= number >= declared.low
    if declared.above is not None:
        wanted.append(f"above {declared.above:g}")
        good &= number > declared.above
    if declared.high is not None:
        wanted.append(f"at most {declared.high:g}")
        good &= number <= declared.high
    if declared.below is not None:
        wanted.append(f"below {declared.below:g}")
        good &= number < declared.below
    if not good:
        raise ConfigError(f"{label} must be {' and '.join(wanted) or 'a finite number'}; got {number:g}")


def _coerce(label: str, value: Any, hint: Any) -> Any:
    """Turn a value from the command line or from TOML into the field's declared type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        origin = typing.get_origin(hint)
    if origin is tuple:
        parts = typing.get_args(hint)
        items = list(value) if isinstance(value, list | tuple) else [value]
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_coerce(label, item, parts[0]) for item in items)
        if len(items) != len(parts):
            raise ConfigError(f"{label} needs {len(parts)} values; got {len(items)}")
        return tuple(_coerce(label, item, part) for item, part in zip(items, parts, strict=True))
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{label} must be {_type_name(hint)}; got {value!r}")


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names.get(hint, str(hint))
