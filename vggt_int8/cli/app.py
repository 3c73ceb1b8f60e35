"""The command line as a whole: global options, and the subcommands of the other modules."""

import inspect
import re
from collections.abc import Callable
from typing import Annotated

import typer

from vggt_int8 import __version__
from vggt_int8.cli import console, options
from vggt_int8.cli.app_page import app_page
from vggt_int8.cli.batch import batch
from vggt_int8.cli.bench import bench, bench_report
from vggt_int8.cli.compare import compare
from vggt_int8.cli.data import data_eth3d
from vggt_int8.cli.demo import demo
from vggt_int8.cli.doctor import doctor
from vggt_int8.cli.estimate import estimate
from vggt_int8.cli.eval import eval_models
from vggt_int8.cli.export import export
from vggt_int8.cli.guard import guarded
from vggt_int8.cli.inspect import inspect_model
from vggt_int8.cli.push import push
from vggt_int8.cli.qat import qat
from vggt_int8.cli.quantize import quantize
from vggt_int8.cli.recipes import recipes
from vggt_int8.cli.run import run
from vggt_int8.cli.scenes import scenes_bundle, scenes_render
from vggt_int8.cli.sensitivity import sensitivity
from vggt_int8.cli.train import train_export, train_measure, train_plot, train_run
from vggt_int8.cli.tune import tune
from vggt_int8.cli.view import view

HELP = """VGGT in INT8: reconstruct scenes from photographs, quantize, compare and inspect models.

Results go to stdout, progress, warnings and errors to stderr.
Exit codes: 0 done, 1 failed, 2 bad input or options; 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP."""
Command = Callable[..., None]
# After the options, one line each.
EXAMPLES = {
    "": (
        "Start with:",
        "vggt-int8 demo [dim]# bundled scenes, no network, no GPU[/]",
        "vggt-int8 run embedded photos/ -o scene [dim]# the small bundled model: no download[/]",
        "vggt-int8 run facebook/VGGT-1B photos/ -o scene -r int8_rotated",
        "vggt-int8 COMMAND --help [dim]# options and examples[/]",
    ),
    "run": (
        "Examples:",
        "vggt-int8 run embedded photos/ -o scene [dim]# the small bundled model: no download[/]",
        "vggt-int8 run facebook/VGGT-1B photos/ -o scene -r int8_rotated",
        "vggt-int8 run vggt-1b-int8 photos/ -o scene --format colmap,glb --copy-images",
        "vggt-int8 run vggt-1b-int8 a.jpg b.jpg -o scene --overwrite",
        "vggt-int8 run vggt-1b-int8 'photos/*.png' -o scene --json | jq .report.seconds",
    ),
    "export": (
        "Examples:",
        "vggt-int8 export scene -f glb [dim]# into the folder of the run[/]",
        "vggt-int8 export scene -o splat -f colmap --copy-images --max-points 200000",
        "vggt-int8 export scene -f ply --overwrite --normals --voxel 0.01 --edges 0.05",
    ),
    "batch": (
        "Examples:",
        "vggt-int8 batch vggt-1b-int8 scenes/ -o results [dim]# scenes/kitchen/*.jpg, scenes/garden/*.jpg, …[/]",
        "vggt-int8 batch facebook/VGGT-1B scenes/ -o results -r int8_rotated --device cuda:0 --device cuda:1",
        "accelerate launch -m vggt_int8 batch vggt-1b-int8 scenes/ -o results [dim]# on every host[/]",
    ),
    "app": (
        "Examples:",
        "vggt-int8 app [dim]# the embedded model, then http://127.0.0.1:7860[/]",
        "vggt-int8 app --model facebook/VGGT-1B --device cuda --max-images 100",
    ),
    "view": (
        "Examples:",
        "vggt-int8 view scene [dim]# then http://127.0.0.1:8080[/]",
        "vggt-int8 view fp16 int8 --color difference --side-by-side",
        "vggt-int8 view scene --host 0.0.0.0 [dim]# for the whole network[/]",
    ),
    "quantize": (
        "Examples:",
        "vggt-int8 quantize facebook/VGGT-1B -o vggt-1b-int8 -r int8_rotated",
        "vggt-int8 quantize VGGT-1B/ -o out -r my.toml --device cpu",
    ),
    "qat": (
        "Examples:",
        "vggt-int8 qat embedded synthetic -o small-qat [dim]# rendered scenes[/]",
        "vggt-int8 qat facebook/VGGT-1B scenes/ -o vggt-1b-qat -r int8_rotated",
        "accelerate launch -m vggt_int8 qat VGGT-1B scenes/ -o out [dim]# several GPUs[/]",
    ),
    "compare": (
        "Examples:",
        "vggt-int8 compare facebook/VGGT-1B vggt-1b-int8 photos/",
        "vggt-int8 compare facebook/VGGT-1B facebook/VGGT-1B photos/ -r int8_weight_only",
        "vggt-int8 compare VGGT-1B vggt-1b-int8 photos/ --json | jq .geometry",
    ),
    "eval": (
        "Examples:",
        "vggt-int8 eval embedded -r int8_rotated -r int8_weight_only -o scores [dim]# rendered scenes[/]",
        "vggt-int8 eval facebook/VGGT-1B vggt-1b-int8 --data scenes/ -o scores",
        "vggt-int8 eval embedded -r int8_rotated -o scores --json | jq .rows[1].differences",
    ),
    "sensitivity": (
        "Examples:",
        "vggt-int8 sensitivity embedded synthetic -o ranking",
        "vggt-int8 sensitivity facebook/VGGT-1B kitchen/ garden/ -o ranking --by block --error 0.3",
        "vggt-int8 sensitivity embedded synthetic -o ranking --size-mb 9 --json | jq .chosen",
    ),
    "inspect": (
        "Examples:",
        "vggt-int8 inspect vggt-1b-int8",
        "vggt-int8 inspect vggt-1b-int8 --all | grep qkv",
        "vggt-int8 inspect vggt-1b-int8 --json | jq .bytes",
    ),
    "bench": (
        "Examples:",
        "vggt-int8 bench [dim]# VGGT-1B's shapes on a GPU, random weights[/]",
        "vggt-int8 bench --frames 1,10 --variants fp32,int8_dynamic:native",
        "vggt-int8 bench facebook/VGGT-1B -o rows.jsonl --resume",
    ),
    "push": (
        "Examples:",
        "vggt-int8 push vggt-1b-int8 me/VGGT-1B-quantized.w8a8 --dry-run [dim]# shows files and card[/]",
        "vggt-int8 push vggt-1b-int8 me/VGGT-1B-quantized.w8a8 --scores scores/ --bench vggt-int8-bench.jsonl",
    ),
    "doctor": (
        "Examples:",
        "vggt-int8 doctor [dim]# exit code 1 if something is wrong[/]",
        "vggt-int8 doctor --skip-run --json | jq .findings",
    ),
    "estimate": (
        "Examples:",
        "vggt-int8 estimate [dim]# VGGT-1B's sizes on common cards[/]",
        "vggt-int8 estimate facebook/VGGT-1B --frames 100 --size 392x518 --memory-gb 12",
    ),
    "data": (
        "Examples:",
        "vggt-int8 data eth3d --scenes courtyard,pipes -o data/eth3d",
        "vggt-int8 eval facebook/VGGT-1B -r int8_rotated --data eth3d:data/eth3d --views 10 -o scores",
    ),
    "scenes": (
        "Examples:",
        "vggt-int8 scenes render --split free --index 7 --views 8 --to scene",
        "vggt-int8 scenes bundle --to scenes [dim]# those that ship with the package[/]",
    ),
    "train": (
        "Examples:",
        "vggt-int8 train run --config run.toml --out runs/mini",
        "accelerate launch -m vggt_int8 train run --config run.toml --out runs/mini [dim]# several GPUs[/]",
        "vggt-int8 train export --out runs/mini --to mini",
        "vggt-int8 train plot runs/mini/log.jsonl -o curves.svg",
    ),
    "tune": (
        "Examples:",
        "vggt-int8 tune -o tiles.json [dim]# then VGGT_INT8_TILES=tiles.json makes use of it[/]",
    ),
}


def _epilog(name: str) -> str | None:
    return "\n\n".join(EXAMPLES[name]) if name in EXAMPLES else None


def _tree(name: str, help: str) -> typer.Typer:
    """The commands of one group, or all of them."""
    return typer.Typer(
        name=name or "vggt-int8",
        help=help,
        epilog=_epilog(name),
        no_args_is_help=True,
        rich_markup_mode="rich",
        add_completion=not name,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _tree("", HELP)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.say(f"vggt-int8 {__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of all subcommands, accepted before or after the subcommand."""
    options.set_globals(quiet, verbose, debug)


def _help(command: Command) -> str:
    """The docstring with a line for each paragraph, which the help then wraps to the terminal's width."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _add(tree: typer.Typer, name: str, command: Command) -> None:
    tree.command(name, help=_help(command), epilog=_epilog(name) if tree is app else None)(
        options.with_globals(guarded(command, libraries=command is not recipes))
    )


COMMANDS: tuple[Command, ...] = (
    *(demo, run, view, app_page, batch, export, quantize, qat, compare, eval_models, sensitivity),
    *(inspect_model, recipes, bench, bench_report, tune, doctor, estimate, push),
)
GROUPS: dict[str, tuple[str, tuple[Command, ...]]] = {
    "scenes": ("Procedural scenes with exact ground truth, as files.", (scenes_render, scenes_bundle)),
    "data": ("Public scenes with known geometry, for eval and for calibration.", (data_eth3d,)),
    "train": ("Train a network on procedural scenes.", (train_run, train_measure, train_export, train_plot)),
}
for command in COMMANDS:
    _add(app, re.sub("_(models?|page)$", "", command.__name__).replace("_", "-"), command)
for name, (help, commands) in GROUPS.items():
    tree = _tree(name, help)
    for command in commands:
        _add(tree, command.__name__.removeprefix(f"{name}_"), command)
    app.add_typer(tree)
