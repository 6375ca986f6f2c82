"""The Typer app: commands, ``--version``, and output streams that accept any text."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from mae.errors import ConfigError
from mae.io.text import shown
from maecli.output import show_error
from maecli.streams import prepare_streams
from maecli.views.help import Group


class Maecli(Group):
    """The group of all commands; a command's own errors are shown by ``maecli.output.Output``."""

    def main(self, *args: Any, standalone_mode: bool = True, **details: Any) -> Any:
        """Run the command line; usage errors are shown in one line, like other errors."""
        prepare_streams()
        run: Any = super().main
        try:
            code = run(*args, standalone_mode=False, **details)
        except Exception as error:
            usage: Any = error
            if not standalone_mode or not hasattr(
                usage, "format_message"
            ):  # only usage errors of Typer have this method
                raise
            if message := usage.format_message():  # empty if the help was shown
                show_error(_explained(usage, message))
            code = usage.exit_code
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def _explained(usage: Any, message: str) -> ConfigError:
    """A usage error of Typer as a ``ConfigError``; an option of the official scripts gets a hint."""
    if usage.ctx is None:
        return ConfigError(message)
    from maecli.options import hint_for_unknown

    unknown = str(usage.option_name) if hasattr(usage, "possibilities") else ""
    hint = hint_for_unknown(usage.ctx.command, unknown) if unknown else None
    if hint is not None:
        return ConfigError(f"there is no option {shown(unknown)}", hint=hint)
    return ConfigError(message, hint=f"{usage.ctx.command_path} --help")


app = typer.Typer(
    name="maecli",
    cls=Maecli,
    help="Masked autoencoders (He et al. 2021): train, visualise, evaluate and profile them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from maecli.output import Output
        from maecli.version import version_lines

        Output().text("\n".join(version_lines()))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Print the versions, the device and the processor, and exit.",
        ),
    ] = False,
) -> None:
    """Masked autoencoders (He et al. 2021): train, visualise, evaluate and profile them."""
