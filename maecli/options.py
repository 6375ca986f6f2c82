"""A config dataclass becomes Typer options, and what was typed becomes the config."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from mae.files import refuse_input, shown
from mae.options import Option, build_config, flag_name, option_of
from mae.toml import read_toml
from maecli.completion import completion_of
from maecli.output import Output

_VERBOSE = "Tell every setting, the time and the memory taken on stderr, and where an error comes from."
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def command_from(
    config_class: Any,
    *,
    toml: bool = False,
    saved: Callable[[dict[str, Any]], dict[str, Any]] = lambda typed: {},
    written: Callable[[Any], Path | None] = lambda config: None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn ``run(config, output)`` into a Typer command with one option per field of the config.

    Args:
        config_class: A frozen dataclass whose fields were made by ``mae.options.option``.
        toml: Add ``--config FILE``; a value on the command line wins over the file's.
        saved: Given what was typed, tells values that both of those win over.
        written: Given the config, tells where the command writes settings of its own: never over ``--config``'s.
    """

    def decorate(run: Callable[[Any, Output], None]) -> Callable[..., None]:
        def command(**typed: Any) -> None:
            with Output(**{name: typed.pop(name) for name in ("as_json", "quiet", "verbose")}) as output:
                config_file = typed.pop("config", None)
                values = {name: value for name, value in typed.items() if value not in (None, [], ())}
                from_file = read_toml(config_file, "--config") if config_file else {}
                from_run = saved(values)
                source = dict.fromkeys(from_run, "the run's config.toml") | dict.fromkeys(from_file, shown(config_file))
                source = {name: file for name, file in source.items() if name not in values}
                config = build_config(config_class, from_run | from_file | values, source=source)
                if config_file and (place := written(config)):
                    refuse_input(place, "--out", {"the file of --config": [config_file]})
                _tell(config, output)
                run(config, output)

        hints = typing.get_type_hints(config_class)
        parameters = [_parameter(field, hints[field.name]) for field in dataclasses.fields(config_class)]
        if toml:
            parameters.append(
                _keyword(
                    "config", Path | None, typer.Option(help="TOML file with these options' names.", metavar="FILE")
                )
            )
        parameters += [
            _keyword("as_json", bool, typer.Option("--json", help="Print the result as one JSON document."), False),
            _keyword("quiet", bool, typer.Option("--quiet", help="Print only the one value a script wants."), False),
            _keyword("verbose", bool, typer.Option("--verbose", help=_VERBOSE), False),
        ]
        positionals = [p for p in parameters if p.name in _positional_names(config_class)]
        rest = [p for p in parameters if p not in positionals]
        command.__signature__ = inspect.Signature(positionals + rest)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__ = run.__name__
        command.__doc__ = run.__doc__
        return command

    return decorate


def _positional_names(config_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class) if option_of(field).positional}


def _parameter(field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """Every option defaults to None, so that what was not typed can come from a file or the config."""
    declared = option_of(field)
    typed = _typed(hint, declared)
    words = completion_of(field.name, declared)
    if declared.positional:
        # Not required by Typer: a TOML file may give it; ``build_config`` says when it is missing.
        info: Any = typer.Argument(
            help=declared.help, metavar=declared.metavar, show_default=False, autocompletion=words
        )
        return _keyword(field.name, typed, info)
    info = typer.Option(
        declared.flags or flag_name(field.name),
        help=declared.help,
        metavar=declared.metavar or "|".join(declared.choices) or _metavar(typed),
        show_default=_default_text(field, declared),
        rich_help_panel=declared.panel,
        autocompletion=words,
    )
    if typed == bool | None and declared.flags is None:
        info.param_decls = (f"{flag_name(field.name)}/--no-{field.name.replace('_', '-')}",)
        info.default = ...
    return _keyword(field.name, typed, info)


def _metavar(typed: Any) -> str | None:
    """What stands for the value in the help; None for a switch."""
    (kind,) = (part for part in typing.get_args(typed) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return " ".join(_METAVARS[part] for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return _METAVARS.get(kind)


def _tell(config: Any, output: Output) -> None:
    """With ``--verbose``: what the command was given, defaults included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        words = [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
        output.detail(f"{field.name} = {' '.join(words[:9])}{' ...' if len(words) > 9 else ''}")


def _typed(hint: Any, declared: Option) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            return list[str if declared.parse else parts[0]] | None  # type: ignore[misc]
        if not declared.parse:
            return hint | None
    return (str if declared.parse else hint) | None


def _default_text(field: dataclasses.Field[Any], declared: Option) -> str | bool:
    if declared.default_text is not None:
        return declared.default_text
    default = field.default
    if default is None or default is dataclasses.MISSING or default == ():
        return False
    if isinstance(default, tuple):
        return " ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _keyword(name: str, annotation: Any, info: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[annotation, info]
    )
