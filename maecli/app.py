"""The Typer app: commands, ``--version`` and the one place where errors meet the user."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mae.errors import MaeError
from maecli.commands.compare import compare
from maecli.commands.export import export
from maecli.commands.pretrain import pretrain
from maecli.commands.profile import profile
from maecli.commands.reconstruct import reconstruct
from maecli.commands.replay import replay
from maecli.output import show_error


class ErrorBoundary(TyperGroup):
    """Shows a user's mistake as one line and its exit code; only bugs leave a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MaeError as error:
            if os.environ.get("MAECLI_DEBUG") == "1":
                raise
            show_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="maecli",
    cls=ErrorBoundary,
    help="Masked autoencoders (He et al. 2021): train them, look at them, know what they cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("pretrain")(pretrain)
app.command("profile")(profile)
app.command("reconstruct")(reconstruct)
app.command("compare")(compare)
app.command("export")(export)
app.command("replay")(replay)


def _show_version(wanted: bool) -> None:
    if wanted:
        import mae

        print(f"maecli {mae.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Masked autoencoders (He et al. 2021): train them, look at them, know what they cost."""
