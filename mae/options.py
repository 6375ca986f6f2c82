"""Declaration and checks of options: a frozen dataclass whose fields have help, bounds and a parser.

The command line makes ``--kebab-case`` options of the fields, a TOML file has the same names with underscores, and
``build_config`` checks the values of both in the same way. ``plain_call`` makes them keyword arguments of a function.
Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from mae.errors import ConfigError, MaeError

Config = TypeVar("Config")
Result = TypeVar("Result")

STANDARD_STREAM = Path("-")  # path that stands for standard input or output
SLASH_KEPT = "\ufdd0"  # stands before a slash of a URL that Path would drop; Unicode has no such character
LARGEST_INTEGER = 2**63 - 1  # limit of TOML, torch and file sizes
_LONGEST_SHOWN = 60  # characters of a value in a message
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://+(?=[^/])")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
# Matches an option in a message with the word after it, or a whole command line in backquotes, but not a file name.
_FLAG = re.compile(r"`maecli [^`]*`|(?<![^\s(`'\"])--(?P<flag>[a-z][a-z-]*[a-z])(?: (?P<value>[\w.+-]*\w))?")


@dataclasses.dataclass(frozen=True)
class Option:
    """Properties of an option, used by the command line and by ``build_config``."""

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
    typed_only: bool = False
    stream: bool = False
    official: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    instead_of: str | None = None


def option(default: Any, help: str, **details: Any) -> Any:
    """A dataclass field that is also an option.

    Args:
        default: Default value of the field; ``dataclasses.MISSING`` makes it required.
        help: One line for ``--help`` and the generated reference.
        **details: The other fields of ``Option``. ``low`` and ``high`` are inclusive bounds, ``above`` and ``below``
            exclusive ones. ``typed_only`` forbids the option in files. ``stream`` allows the path ``-``. ``official``
            lists the option's names on the official command line. ``aliases`` lists older names of the field, which are
            accepted but not shown. ``instead_of`` names another field that sets the same thing: a value of one field
            overrides a value of the other from a file or a preset.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **details)})


def option_of(field: dataclasses.Field[Any]) -> Option:
    """The ``Option`` that a config field was declared with."""
    declared: Option = field.metadata["option"]
    return declared


def flag_name(field_name: str) -> str:
    """``mask_ratio`` -> ``--mask-ratio``."""
    return "--" + field_name.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings for a common situation, which replace defaults.

    Attributes:
        summary: Purpose of the preset in a few words.
        values: Values by field name, as in a TOML file.
    """

    summary: str
    values: Mapping[str, Any]


def preset_values(name: Any, presets: Mapping[str, Preset]) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        ConfigError: There is no preset of that name.
    """
    if isinstance(name, str) and name in presets:
        return dict(presets[name].values)
    near = difflib.get_close_matches(str(name)[:_LONGEST_SHOWN], presets, n=2)
    raise ConfigError(
        f"--preset must be one of {', '.join(presets)}; got {brief(name)}",
        hint=f"did you mean {' or '.join(near)}?" if near else None,
    )


def named_here(config_class: Any, official: str) -> dataclasses.Field[Any] | None:
    """The field for an option's official name, or for its own name with any dashes or underscores; else None."""
    name = official.lstrip("-").replace("-", "_")
    fields = dataclasses.fields(config_class)
    same = next((field for field in fields if field.name == name and not option_of(field).positional), None)
    return same or next((field for field in fields if name in option_of(field).official), None)


def current_names(config_class: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace older names of fields by the current ones.

    Raises:
        ConfigError: A field was given under two names.
    """
    names = {alias: field.name for field in dataclasses.fields(config_class) for alias in option_of(field).aliases}
    current: dict[str, Any] = {}
    for given, value in values.items():
        name = names.get(given, given)
        if name in current:
            old = next(alias for alias in names if alias in values and names[alias] == name)
            raise ConfigError(f"{flag_name(old)} is the older name of {flag_name(name)}: give only {flag_name(name)}")
        current[name] = value
    return current


def merge_layers(config_class: Any, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge sets of values; later sets override earlier ones, also where two fields set the same thing."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for field in dataclasses.fields(config_class):
            other = option_of(field).instead_of
            if other in layer and field.name not in layer:
                merged.pop(field.name, None)
        merged |= layer
    return merged


def refuse_both(config_class: Any, values: Mapping[str, Any]) -> None:
    """Check that no two fields that set the same thing were given.

    Raises:
        ConfigError: Two such fields were given.
    """
    for field in dataclasses.fields(config_class):
        declared = option_of(field)
        other = declared.instead_of
        if other is not None and field.name in values and other in values:
            this, that = flag_name(field.name), flag_name(other)
            raise ConfigError(
                f"{this} {brief(values[field.name])} and {that} {brief(values[other])} set the same thing",
                hint=f"drop {that} to take {this} as it is, or drop {this}",
            )


def refuse_hidden_tables(values: Mapping[str, Any], hidden_by: Mapping[str, Any], file: str) -> None:
    """Check that no table of a settings file has the name of a value that replaces it unread, such as ``[data]``.

    Raises:
        ConfigError: There is one.
    """
    for name, value in values.items():
        if isinstance(value, dict) and name in hidden_by:
            raise _unknown_table(name, f" in {file}")


def refuse_without_effect(config: Any, name: str, because: str) -> None:
    """Raise an error if an option that has no effect beside the others was set to something else than its default.

    Raises:
        ConfigError: It was; ``because`` says which others, such as "with --select last".
    """
    value = getattr(config, name)
    if value != getattr(type(config), name):
        raise ConfigError(f"{flag_name(name)} {value:g} has no effect {because}", hint=f"drop {flag_name(name)}")


def build_config(
    config_class: type[Config], values: Mapping[str, Any], *, source: str | Mapping[str, str] = ""
) -> Config:
    """Build a config from plain values, checking names, types and bounds.

    Args:
        config_class: A frozen dataclass whose fields were made by ``option``.
        values: Values by field name; missing fields take their defaults.
        source: For messages: the path of the TOML file that all values come from, or, by field name, the paths for
            the values that come from files.

    Raises:
        ConfigError: An unknown name, a missing one, a wrong type or a value out of bounds.
    """
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, config_class))}
    values = current_names(config_class, values)
    sources = dict.fromkeys(values, source) if isinstance(source, str) else source
    hints = typing.get_type_hints(config_class)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        where = sources.get(name, "")
        if name not in fields:
            raise _unknown(config_class, name, value, f" in {where}" if where else "")
        declared = option_of(fields[name])
        if where and declared.typed_only:
            raise ConfigError(f"{name} in {where} is not read from a file", hint=f"type {flag_name(name)} instead")
        checked[name] = _check(f"{name} in {where}" if where else _label(name, declared), value, hints[name], declared)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and checked.get(name, ()) == ():
            where = f" in {source}" if source and isinstance(source, str) else ""
            raise ConfigError(f"missing {_label(name, option_of(field))}{where}", hint="see --help for an example")
    try:
        return config_class(**checked)
    except ConfigError as error:
        files = dict.fromkeys(file for name, file in sources.items() if file and flag_name(name) in error.message)
        if not files:
            raise
        raise ConfigError(f"{error.message} (set in {', '.join(files)})", hint=error.hint) from None


def _label(name: str, declared: Option) -> str:
    return (declared.metavar or name) if declared.positional else flag_name(name)


def _unknown(config_class: Any, name: str, value: Any, where: str) -> ConfigError:
    if isinstance(value, dict):
        return _unknown_table(name, where)
    here = named_here(config_class, name)
    near = difflib.get_close_matches(name[:_LONGEST_SHOWN], [field.name for field in dataclasses.fields(config_class)])
    if here is not None:
        hint = f"the official {name} is {here.name} here"
    else:
        hint = f"did you mean {', '.join(near)}?" if near else "see --help for the names"
    return ConfigError(f"unknown option {brief(name)}{where}", hint=hint)


def _unknown_table(name: str, where: str) -> ConfigError:
    return ConfigError(
        f"unknown table [{_cut(name)}]{where}", hint="settings have no tables: write all names at the top level"
    )


def brief(value: Any) -> str:
    """A value as the user wrote it, shortened to one line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INTEGER:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, list | tuple | dict) and len(value) > 9:
        return f"{len(value):,} values"
    try:
        return _cut(repr(value) if isinstance(value, str | int | float | list | tuple | dict) else str(value))
    except ValueError:  # one of the values is a number with too many digits for Python to convert
        return f"{len(value)} values"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _check(label: str, value: Any, hint: Any, declared: Option) -> Any:
    if value is None and types.NoneType in typing.get_args(hint):
        return None
    if declared.parse is not None:
        try:
            value = declared.parse(value)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ConfigError(f"{label}: {error}") from None
    else:
        value = _coerce(label, value, hint)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not isinstance(number, bool):
            _check_bounds(label, number, declared)
    for word in value if isinstance(value, tuple) else (value,):
        if isinstance(word, Path) and word == STANDARD_STREAM and not declared.stream:
            raise ConfigError(
                f"{label} - means standard input or output, which cannot be used here",
                hint=f"wanted: {declared.help[0].lower()}{declared.help[1:].rstrip('.')}",
            )
        if declared.choices and word not in declared.choices:
            near = difflib.get_close_matches(str(word)[:_LONGEST_SHOWN], declared.choices, n=2, cutoff=0.5)
            raise ConfigError(
                f"{label} must be one of {', '.join(declared.choices)}; got {brief(word)}",
                hint=f"did you mean {' or '.join(near)}?" if near else None,
            )
    return value


def _check_bounds(label: str, number: float, declared: Option) -> None:
    if isinstance(number, int) and abs(number) > LARGEST_INTEGER:
        lowest = -LARGEST_INTEGER if declared.low is None else declared.low
        highest = LARGEST_INTEGER if declared.high is None else declared.high
        limit = f"at most {highest:g}" if number > 0 else f"at least {lowest:g}"
        raise ConfigError(f"{label} must be {limit}; got {brief(number)}")
    if not math.isfinite(number):
        raise ConfigError(f"{label} must be a finite number; got {number:g}")
    bounds = (
        ("at least", operator.ge, declared.low),
        ("above", operator.gt, declared.above),
        ("at most", operator.le, declared.high),
        ("below", operator.lt, declared.below),
    )
    wanted = [(f"{word} {bound:g}", is_within(number, bound)) for word, is_within, bound in bounds if bound is not None]
    if not all(good for _, good in wanted):
        raise ConfigError(f"{label} must be {' and '.join(words for words, _ in wanted)}; got {number:g}")


def _coerce(label: str, value: Any, hint: Any) -> Any:
    """Turn a value from the command line or from TOML into the field's declared type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = typing.get_args(hint)
        if Any in parts and not isinstance(value, str | Path):  # an image in memory, which only Python code can give
            return value
        (hint,) = (part for part in parts if part not in (type(None), Any))
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
        return _path(label, value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return math.inf if isinstance(value, int) and abs(value) > LARGEST_INTEGER else float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{label} must be {_type_name(hint)}; got {brief(value)}")


def _path(label: str, value: str | Path) -> Path:
    if not str(value):
        raise ConfigError(f"{label} must be a path; got nothing")
    if "\0" in str(value):
        raise ConfigError(f"{label} must be a path; got {brief(value)}, but a path cannot contain a zero byte")
    return path_of(value)


def path_of(text: str | Path) -> Path:
    """A path. Of a URL, ``//`` and ``/.`` are kept, which Path would drop; ``url_of`` gives the URL as it was."""
    match = _URL.match(text) if isinstance(text, str) else None
    if match is None:
        return Path(text)
    rest = str(text)[match.end() :]
    rest = rest if "?" in rest else rest.rstrip("/")
    return Path(match[0] + "/".join(SLASH_KEPT + part if part in ("", ".") else part for part in rest.split("/")))


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
    return names.get(hint, str(hint))


def plain_call(
    config_class: Any,
    use_case: Callable[..., Result],
    *,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
    presets: Mapping[str, Preset] = types.MappingProxyType({}),
    saved: Callable[[dict[str, Any]], dict[str, Any]] = lambda given: {},
) -> Callable[..., Result]:
    """Make ``use_case(config, ...)`` one call with plain arguments: ``use_case("photos", epochs=3)``.

    Positional arguments set the first field of the config, and keyword arguments set fields by name. Other arguments
    of the use case (callbacks) are passed on by keyword. The first argument may also be a config. Errors and notes
    name fields (``mask_ratio``); those of the command line name options (``--mask-ratio``).

    Args:
        config_class: A frozen dataclass whose fields were made by ``option``.
        use_case: A function of such a config.
        defaults: By field name, the call's defaults that differ from the config's.
        presets: Presets that the argument ``preset`` can name.
        saved: Returns the settings of a resumed run, given the caller's values; they replace defaults.
    """
    name = f"mae.{use_case.__name__}"
    first = dataclasses.fields(config_class)[0].name
    takes_many = typing.get_origin(typing.get_type_hints(config_class)[first]) is tuple
    handed_on = list(inspect.signature(use_case).parameters.values())[1:]

    @functools.wraps(use_case)
    def call(*args: Any, **kwargs: Any) -> Result:
        with _errors_name_fields(config_class, name):
            if args and isinstance(args[0], config_class):
                return _notes_name_fields(use_case(*args, **kwargs), config_class, name)
            others = {one.name: kwargs.pop(one.name) for one in handed_on if one.name in kwargs}
            if args and first in kwargs:
                raise TypeError(f"{name}() got {first} twice: as a positional argument and by keyword")
            if len(args) > 1 and not takes_many:
                raise TypeError(f"{name}() takes one positional argument, {first}; got {len(args)}")
            if args:
                kwargs[first] = _flattened(args) if takes_many else args[0]
            preset = kwargs.pop("preset", None) if presets else None
            given = current_names(config_class, kwargs)
            refuse_both(config_class, given)
            from_run = current_names(config_class, saved(given))
            if preset is not None and from_run:
                raise ConfigError(f"--preset {preset}: a resumed run keeps its settings", hint="drop --preset")
            layers = [defaults, {} if preset is None else preset_values(preset, presets), from_run, given]
            config = build_config(config_class, merge_layers(config_class, layers))
            result = use_case(config, **others)
        return _notes_name_fields(result, config_class, name)

    others_taken = [inspect.Parameter("preset", _KEYWORD, default=None, annotation=str | None)] if presets else []
    others_taken += [one.replace(kind=_KEYWORD) for one in handed_on]
    call.__signature__ = _plain_signature(config_class, others_taken, use_case, defaults)  # type: ignore[attr-defined]
    call.__doc__ = _plain_doc(config_class, use_case, defaults, presets)
    return call


def in_python(text: str, config_class: Any, call: str) -> str:
    """Rewrite a message of the command line for a caller of the library.

    ``--mask-ratio`` becomes ``mask_ratio``, ``--epochs 3`` ``epochs=3``, ``--no-hflip`` ``hflip=False`` and ``--help``
    ``help(mae.pretrain)``. A whole command line in backquotes is not changed, nor are options that this config does not
    have.

    Args:
        text: The message.
        config_class: The config with the options.
        call: Name of the function, for instance "mae.pretrain".
    """
    fields = {
        name: field for field in dataclasses.fields(config_class) for name in (field.name, *option_of(field).aliases)
    }

    def spelled(match: re.Match[str]) -> str:
        name, value = (match["flag"] or "").replace("-", "_"), match["value"]
        after = f" {value}" if value else ""
        if name == "help":
            return f"help({call}){after}"
        if name == "preset":
            return name + after
        if name not in fields:
            positive = name.removeprefix("no_")
            return f"{positive}=False{after}" if positive in fields else match[0]
        if value in option_of(fields[name]).choices:
            return f'{name}="{value}"'
        is_number = re.fullmatch(r"\d[\d.]*(e[+-]?\d+)?", value or "")
        return f"{name}={value}" if is_number and not isinstance(fields[name].default, tuple) else name + after

    first = next(iter(fields))
    metavar = option_of(fields[first]).metavar if option_of(fields[first]).positional else None
    if metavar is not None:
        text = re.sub(rf"^(missing |){metavar}(?= |$)", rf"\1{first}", text)
    return _FLAG.sub(spelled, text)


@contextmanager
def _errors_name_fields(config_class: Any, call: str) -> Iterator[None]:
    """A context manager that rewrites errors to name fields instead of options, and adds the hint as a note."""
    try:
        yield
    except MaeError as error:
        error.message = in_python(error.message, config_class, call)
        error.args = (error.message,)
        if error.hint is not None:
            error.hint = in_python(error.hint, config_class, call)
            error.add_note(f"hint: {error.hint}")
        raise


def _notes_name_fields(result: Result, config_class: Any, call: str) -> Result:
    notes = getattr(result, "notes", ())
    if not notes:
        return result
    renamed = tuple(in_python(note, config_class, call) for note in notes)
    return typing.cast(Result, dataclasses.replace(typing.cast(Any, result), notes=renamed))


def _flattened(args: Sequence[Any]) -> list[Any]:
    return [item for arg in args for item in (arg if isinstance(arg, list | tuple) else (arg,))]


def _plain_signature(
    config_class: Any, others: Sequence[inspect.Parameter], use_case: Callable[..., Any], defaults: Mapping[str, Any]
) -> inspect.Signature:
    """The signature for ``help`` and editors: the first field is positional, all others are keywords."""
    hints, kinds = typing.get_type_hints(config_class), inspect.Parameter
    parameters = []
    for number, field in enumerate(dataclasses.fields(config_class)):
        takes_many = number == 0 and typing.get_origin(hints[field.name]) is tuple
        default = defaults.get(field.name, field.default)
        parameters.append(
            inspect.Parameter(
                field.name,
                kinds.VAR_POSITIONAL if takes_many else _KEYWORD if number else kinds.POSITIONAL_OR_KEYWORD,
                default=kinds.empty if takes_many or default is dataclasses.MISSING else default,
                annotation=_widened(typing.get_args(hints[field.name])[0] if takes_many else hints[field.name]),
            )
        )
    return inspect.Signature([*parameters, *others], return_annotation=inspect.signature(use_case).return_annotation)


def _widened(hint: Any) -> Any:
    """The types that a caller may pass: also text for a path, and a single value for a tuple."""
    if hint is Path:
        return str | Path
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (Ellipsis,):
        return _widened(typing.get_args(hint)[0]) | hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, (_widened(part) for part in typing.get_args(hint)))
    return hint


def _plain_doc(
    config_class: Any, use_case: Callable[..., Any], defaults: Mapping[str, Any], presets: Mapping[str, Preset]
) -> str:
    """The use case's docstring, in which the config's fields replace the config."""
    name = f"mae.{use_case.__name__}"
    head, *sections = re.split(r"\n\n(?=(?:Args|Returns|Raises):\n)", inspect.getdoc(use_case) or "")
    entries = []
    for field in dataclasses.fields(config_class):
        declared, default = option_of(field), defaults.get(field.name, field.default)
        told = declared.help
        if declared.default_text is not None and field.name not in defaults:
            told += f" Default: {declared.default_text}."
        elif default not in (dataclasses.MISSING, None, ()):
            told += f" Default: {str(default) if isinstance(default, Path) else repr(default)}."
        entries.append(f"    {field.name}: {in_python(told, config_class, name)}")
    if presets:
        known = "; ".join(f"{name}: {preset.summary}" for name, preset in presets.items())
        entries.append(f"    preset: Name of a preset, whose values replace defaults: {known}.")
    if sections and sections[0].startswith("Args:"):  # its first entry is the config, which the fields replace
        entries += re.split(r"\n(?=    \w)", sections.pop(0))[2:]
    return "\n\n".join([head.replace("``config.", "``"), "\n".join(["Args:", *entries]), *sections]) + "\n"
