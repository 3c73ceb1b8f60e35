"""The command line as a whole: global options, and the subcommands of the other files."""

from typing import Annotated

import typer

from vggt_int8 import __version__
from vggt_int8.cli import console
from vggt_int8.cli.bench import bench, bench_report
from vggt_int8.cli.compare import compare
from vggt_int8.cli.demo import demo
from vggt_int8.cli.inspect import inspect_model
from vggt_int8.cli.quantize import quantize
from vggt_int8.cli.recipes import recipes
from vggt_int8.cli.run import run

app = typer.Typer(
    name="vggt-int8",
    help="VGGT in INT8: quantize a checkpoint, reconstruct scenes from photographs, compare and inspect models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"vggt-int8 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="VGGT_INT8_DEBUG", help="Show tracebacks and the libraries' own messages."),
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the subcommand."""
    console.settings.debug = debug


for command in (quantize, run, compare, inspect_model, recipes, demo, bench, bench_report):
    app.command(command.__name__.removesuffix("_model").replace("_", "-"))(console.guarded(command))


def main() -> None:
    """Entry point of the `vggt-int8` command."""
    app()
