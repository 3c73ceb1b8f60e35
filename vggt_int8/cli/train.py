"""`vggt-int8 train`: train a network on procedural scenes, measure the cost of a step, export weights, plot curves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggt_int8.cli import console, options
from vggt_int8.disk import check_place
from vggt_int8.training.log import check_run_folder

if TYPE_CHECKING:
    from vggt_int8.training.config import TrainingConfig

Config = Annotated[
    Path,
    typer.Option("--config", help="TOML file of the run, which may have several parts.", **options.file_option()),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")]
TotalSteps = Annotated[
    int | None,
    typer.Option(
        help="Step at which the run ends, with its decay, instead of the file's.",
        show_default=False,
        **options.between(1),
    ),
]
Compile = Annotated[
    str | None,
    typer.Option(
        help=f"Parts to compile, instead of the file's: {', '.join(options.COMPILABLE)}, separated by commas, or none.",
        show_default=False,
        **options.compile_option(),
    ),
]


def train_run(
    config: Config,
    out: Out,
    init: Annotated[
        Path | None,
        typer.Option(help="Model folder whose weights a new run starts from.", show_default=False),
    ] = None,
    first_step: Annotated[
        int, typer.Option(help="With --init: the step of the run at which these weights start.", **options.between(0))
    ] = 0,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="Stop cleanly within this time, including validation.", show_default=False, **options.between(0)
        ),
    ] = None,
    save_minutes: Annotated[float, typer.Option(help="Time between checkpoints.", **options.between(0))] = 4.0,
    total_steps: TotalSteps = None,
    compile: Compile = None,
    as_json: options.Json = False,
) -> None:
    """Train, or continue from OUT/checkpoint. On several GPUs: accelerate launch -m vggt_int8 train run …"""
    if first_step and init is None:
        raise ValueError("--first-step is for weights that are given with --init")
    check_run_folder(out.expanduser())
    from vggt_int8.training import run

    end = run.train_run(
        _parts(config, total_steps, compile),
        out.expanduser(),
        init=None if init is None else init.expanduser(),
        first_step=first_step,
        max_minutes=max_minutes,
        save_minutes=save_minutes,
        quiet=console.settings.quiet,
    )
    if end is None:  # another process speaks for all
        return
    if as_json:
        content = {"out": out, "checkpoint": end.checkpoint, "step": end.step}
        console.document("train run", {**content, "total_steps": end.total_steps, "reason": end.reason})
        return
    console.say(f"stopped at step {end.step}: {end.reason}. Checkpoint: {end.checkpoint}")


def train_measure(
    config: Config,
    out: Out,
    max_minutes: Annotated[float, typer.Option(help="Total time limit.", **options.between(0))] = 4.0,
    total_steps: TotalSteps = None,
    compile: Compile = None,
    as_json: options.Json = False,
) -> None:
    """Measure the time of rendering and of each part of a step, and the memory, in a short run of the first part in
    OUT/measure.
    """
    check_run_folder(out.expanduser() / "measure")
    from vggt_int8.training.measure import measure

    say = console.note if as_json else console.say
    part = _parts(config, total_steps, compile)[0]
    found = measure(part, out.expanduser(), max_minutes, say, quiet=console.settings.quiet)
    if as_json:
        console.document("train measure", found)


def train_export(
    out: Out,
    to: Annotated[Path, typer.Option("--to", help="Model folder to write.")],
    as_json: options.Json = False,
) -> None:
    """Write the checkpoint of a run as a model folder in fp16: config.json and model.safetensors."""
    check_place(to)
    from vggt_int8.training.run import export

    export(out.expanduser(), to.expanduser())
    if as_json:
        console.document("train export", {"out": out, "to": to})
        return
    console.say(f"wrote {to}")


def train_plot(
    logs: Annotated[list[Path], typer.Argument(help="log.jsonl files of one run, in order.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="SVG file to write.")],
    as_json: options.Json = False,
) -> None:
    """Plot losses and held-out scores over the steps."""
    from vggt_int8.chart import check_chart
    from vggt_int8.training.plot import write_curves

    check_chart(output.expanduser())
    write_curves([log.expanduser() for log in logs], output.expanduser())
    if as_json:
        console.document("train plot", {"logs": logs, "output": output})
        return
    console.say(f"wrote {output}")


def _parts(config: Path, total_steps: int | None, compile: str | None) -> "list[TrainingConfig]":
    """The parts of a run, with the values of the options set in all of them."""
    import dataclasses

    from vggt_int8.training.config import end_run_at, load_run

    parts = load_run(config.expanduser())
    if total_steps is not None:
        parts = end_run_at(parts, total_steps)
    if compile is not None:
        compiled = () if compile == "none" else tuple(compile.split(","))
        parts = [dataclasses.replace(part, compile=compiled) for part in parts]
    return parts
