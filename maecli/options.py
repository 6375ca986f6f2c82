"""Makes Typer options of a config dataclass, and the config of the typed values."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mae.errors import ConfigError
from mae.io.files import refuse_input
from mae.io.text import shown
from mae.io.toml import read_toml
from mae.io.urls import public_name
from mae.options import (
    Option,
    Preset,
    build_config,
    current_names,
    flag_name,
    merge_layers,
    named_here,
    option_of,
    preset_values,
    refuse_both,
    refuse_hidden_tables,
)
from mae.training.classifier_config import commands_with, refuse_other_command
from maecli.completion import completion_of
from maecli.output import Output

# Options of the official scripts without a counterpart in a command, and what to do instead.
_PINNED = dict.fromkeys(("pin_mem", "no_pin_mem"), "drop it: memory is pinned for CUDA and nowhere else")
_LAUNCHED = ("world_size", "local_rank", "dist_on_itp", "dist_url", "dist_eval")
_RESUMED = "drop it: the checkpoint stores the epoch; --resume RUN continues where the run stopped"
_FROZEN = {
    **_PINNED,
    "nb_classes": "drop it: the class folders tell the number of classes",
    "eval": "drop it: maecli evaluate trains its probes and tests them in one call",
}


def _learning(command: str) -> dict[str, str]:
    """Hints for the official options that ``finetune`` or ``linprobe`` does not have."""
    launcher = f"torchrun --nproc-per-node 8 -m maecli {command} ..."
    return {
        **_FROZEN,
        "eval": "drop it: the test images are evaluated once, after the last epoch; maecli predict takes other images",
        "start_epoch": _RESUMED,
        **dict.fromkeys(_LAUNCHED, f"drop it: the launcher sets it: {launcher}"),
        "dist_eval": "drop it: the processes always share the images that are held out or tested",
    }


NOT_NEEDED: dict[str, dict[str, str]] = {
    "FinetuneConfig": {
        **_learning("finetune"),
        "color_jitter": "drop it: RandAugment takes its place, in the official recipe too; --aa is its policy",
        **dict.fromkeys(
            ("remode", "recount", "resplit"),
            "drop it: one rectangle of noise is erased, as in the official recipe; --reprob is the probability",
        ),
        **dict.fromkeys(
            ("cutmix_minmax", "mixup_mode"), "drop it: a batch is mixed as a whole, as in the official recipe"
        ),
    },
    "LinprobeConfig": {
        **_learning("linprobe"),
        "shard": "drop it: the encoder is frozen, so there are no gradients and moments to divide",
    },
    "PredictConfig": {
        **_FROZEN,
        "eval": "drop it: predict does nothing else",
        **dict.fromkeys(_LAUNCHED, "drop it: predict runs in one process"),
    },
    "PretrainConfig": {
        **_PINNED,
        "start_epoch": _RESUMED,
        **dict.fromkeys(_LAUNCHED, "drop it: the launcher sets it: torchrun --nproc-per-node 8 -m maecli pretrain ..."),
    },
    "EmbedConfig": {
        **_FROZEN,
        **dict.fromkeys(_LAUNCHED, "drop it: the launcher sets it: torchrun --nproc-per-node 8 -m maecli embed ..."),
    },
    "EvaluateConfig": {
        **_FROZEN,
        **dict.fromkeys(_LAUNCHED, "drop it: evaluate runs in one process"),
        **dict.fromkeys(
            ("cls_token", "global_pool"), "drop it: the class token and the mean of the patches are both evaluated"
        ),
        **dict.fromkeys(
            ("epochs", "blr", "lr", "min_lr", "warmup_epochs", "weight_decay", "accum_iter"),
            "drop it: the probes choose their own settings on held-out training images",
        ),
    },
}
_VERBOSE = "Print every setting, elapsed time, peak memory and the traceback of an error to stderr."
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def command_from(
    config_class: Any,
    *,
    toml: bool = False,
    saved: Callable[[dict[str, Any]], dict[str, Any]] = lambda typed: {},
    written: Callable[[Any], Path | None] = lambda config: None,
    presets: Mapping[str, Preset] = types.MappingProxyType({}),
    switches: Mapping[str, str] = types.MappingProxyType({}),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn ``run(config, output)`` into a Typer command with one option per field of the config.

    Order of precedence: typed values, ``--config``, saved values, preset, defaults.

    Args:
        config_class: A frozen dataclass whose fields were made by ``mae.options.option``.
        toml: Whether to add ``--config FILE``.
        saved: Returns the settings of the run to resume, given the typed values; {} for a new run.
        written: Returns the settings file that the command writes, which must not be the file of ``--config``; or None.
        presets: Choices of ``--preset NAME``, which a settings file may name too.
        switches: Flags that are not settings, name -> help; ``run`` gets each as a keyword argument.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def command(**typed: Any) -> None:
            with Output(**{name: typed.pop(name) for name in ("as_json", "quiet", "verbose")}) as output:
                switched = {name: bool(typed.pop(name)) for name in switches}
                config_file = typed.pop("config", None)
                given = {name: value for name, value in typed.items() if value not in (None, [], ())}
                values = current_names(config_class, given)
                from_file = current_names(config_class, read_toml(config_file, "--config") if config_file else {})
                preset = values.pop("preset", from_file.pop("preset", None)) if presets else None
                if config_file:
                    refuse_other_command(from_file, config_file, config_class.command)
                    refuse_hidden_tables(from_file, values, shown(config_file))
                refuse_both(config_class, values)
                from_run = current_names(config_class, saved(values))
                if preset is not None and from_run:
                    raise ConfigError(f"--preset {preset}: a resumed run keeps its settings", hint="drop --preset")
                layers = [
                    (f"the preset {preset}", {} if preset is None else preset_values(preset, presets)),
                    ("the run's config.toml", from_run),
                    (shown(config_file) if config_file else "", from_file),
                ]
                source = {name: where for where, layer in layers for name in layer if name not in values}
                merged = merge_layers(config_class, [*(layer for _, layer in layers), values])
                config = build_config(config_class, merged, source=source)
                if filled := [name for name in merged if source.get(name) == f"the preset {preset}"]:
                    output.note(f"preset {preset}: {' '.join(_as_typed(config, name) for name in filled)}")
                if config_file and (place := written(config)):
                    refuse_input(place, "--out", {"the file of --config": [config_file]})
                _tell(config, output)
                run(config, output, **switched)

        hints = typing.get_type_hints(config_class)
        parameters = [
            _parameter(name, field, hints[field.name])
            for field in dataclasses.fields(config_class)
            for name in (field.name, *option_of(field).aliases)
        ]
        if presets:
            parameters.append(_preset_parameter(presets))
        if toml:
            parameters.append(
                _keyword(
                    "config",
                    Path | None,
                    typer.Option(help="Read options from a TOML file; typed options win.", metavar="FILE"),
                )
            )
        parameters += [
            *(_keyword(name, bool, typer.Option(flag_name(name), help=help), False) for name, help in switches.items()),
            _keyword("as_json", bool, typer.Option("--json", help="Print the result as one JSON document."), False),
            _keyword(
                "quiet", bool, typer.Option("--quiet", help="Print only the most important value, for scripts."), False
            ),
            _keyword("verbose", bool, typer.Option("--verbose", help=_VERBOSE), False),
        ]
        names = {field.name for field in dataclasses.fields(config_class) if option_of(field).positional}
        positionals = [p for p in parameters if p.name in names]
        rest = [p for p in parameters if p not in positionals]
        command.__signature__ = inspect.Signature(positionals + rest)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__ = run.__name__
        command.__doc__ = run.__doc__
        command.config_class = config_class  # type: ignore[attr-defined]
        return command

    return decorate


def hint_for_unknown(command: Any, option: str) -> str | None:
    """A hint for an option of the official scripts, or of a training command, that this command lacks; or None."""
    config_class = getattr(command.callback, "config_class", None)
    here = named_here(config_class, option) if config_class is not None else None
    if here is None:
        name = option.lstrip("-").replace("-", "_")
        hint = NOT_NEEDED.get(getattr(config_class, "__name__", ""), {}).get(name)
        *others, last = commands_with([name]) or ("",)
        listed = f"{', '.join(others)} and {last}" if others else last
        return hint or (f"it is an option of {listed}" if listed else None)
    declared = option_of(here)
    if declared.positional:
        return f"{option} is an argument here, not an option: maecli {command.name} {declared.metavar}: {declared.help}"
    return f"{option} is {flag_name(here.name)} here: {declared.help}"


def _preset_parameter(presets: Mapping[str, Preset]) -> inspect.Parameter:
    known = "; ".join(f"{name}: {preset.summary}" for name, preset in presets.items())
    return _keyword(
        "preset",
        str | None,
        typer.Option(
            help=f"Defaults for {known}. Options and --config win.",
            metavar="|".join(presets),
            autocompletion=lambda incomplete: [name for name in presets if name.startswith(incomplete)],
        ),
    )


def _as_typed(config: Any, name: str) -> str:
    """A setting as text, as typed on the command line."""
    value = getattr(config, name)
    if isinstance(value, bool):
        return flag_name(name) if value else f"--no-{name.replace('_', '-')}"
    (declared,) = (option_of(field) for field in dataclasses.fields(config) if field.name == name)
    items = value if isinstance(value, tuple) else (value,)
    words = (f"{item:g}" if isinstance(item, float) else str(item) for item in items)
    return f"{flag_name(name)} {('x' if declared.parse else ' ').join(words)}"


def _parameter(name: str, field: dataclasses.Field[Any], hint: Any) -> inspect.Parameter:
    """The Typer parameter of a config field.

    Every option defaults to None, so that values that were not typed can come from a file or the config's default.
    """
    declared = option_of(field)
    typed = _typed(hint, declared)
    words = completion_of(field.name, declared)
    if declared.positional:
        # Not required by Typer, since a TOML file may give it; ``build_config`` raises an error if it is missing.
        info: Any = typer.Argument(
            help=declared.help, metavar=declared.metavar, show_default=False, autocompletion=words
        )
        return _keyword(name, _as_typed_text(typed), info)
    info = typer.Option(
        (declared.flags if name == field.name else None) or flag_name(name),
        help=declared.help,
        metavar=declared.metavar or "|".join(declared.choices) or _metavar(typed),
        show_default=_default_text(field, declared),
        rich_help_panel=declared.panel,
        hidden=name != field.name,
        autocompletion=words,
    )
    if typed == bool | None and declared.flags is None:
        info.param_decls = (f"{flag_name(name)}/--no-{name.replace('_', '-')}",)
        info.default = ...
    return _keyword(name, _as_typed_text(typed), info)


def _as_typed_text(typed: Any) -> Any:
    """The type for Typer: paths stay text until ``build_config``, because Path would drop slashes of a URL."""
    return {Path | None: str | None, list[Path] | None: list[str] | None}.get(typed, typed)


def _metavar(typed: Any) -> str | None:
    """Placeholder of the value in the help; None for a flag."""
    (kind,) = (part for part in typing.get_args(typed) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return " ".join(_METAVARS[part] for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return _METAVARS.get(kind)


def _tell(config: Any, output: Output) -> None:
    """With ``--verbose``, print all settings, defaults included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        items = value if isinstance(value, tuple) else (value,)
        words = [public_name(item) if isinstance(item, Path) else str(item) for item in items]
        output.detail(f"{field.name} = {' '.join(words[:9])}{' ...' if len(words) > 9 else ''}")


def _typed(hint: Any, declared: Option) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if len(parts) == 2 and parts[1] is Ellipsis:
            (item,) = (
                part for part in typing.get_args(parts[0]) or parts[:1] if part is not Any
            )  # ``Any`` is for callers of the library
            return list[str if declared.parse else item] | None  # type: ignore[misc]
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
