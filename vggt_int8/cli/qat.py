"""`vggt-int8 qat`: quantization-aware training on unlabelled images."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import Model, fetch
from vggt_int8.disk import check_place


def qat(
    model: Model,
    data: Annotated[
        list[str],
        typer.Argument(
            help="Folders of images, each with the views of a scene, or folders of these; or synthetic (rendered).",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the INT8 checkpoint; its subfolder run/ contains the run.")
    ],
    recipe: Annotated[
        str,
        typer.Option("--recipe", "-r", help="A shipped recipe's name or a .toml file.", **options.recipe_option()),
    ] = "int8_static_rotated",
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            "--calibration",
            help="Images for static scales: file, folder or pattern; repeatable; by default from the training data.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="TOML file of the run.", show_default=False, **options.file_option()),
    ] = None,
    total_steps: Annotated[
        int | None,
        typer.Option(
            help="Step at which the run ends, instead of the file's.", show_default=False, **options.between(1)
        ),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="Stop cleanly within this time, including validation.", show_default=False, **options.between(0)
        ),
    ] = None,
    save_minutes: Annotated[float, typer.Option(help="Time between checkpoints.", **options.between(0))] = 4.0,
    as_json: options.Json = False,
) -> None:
    """Quantization-aware training: train a model with INT8 rounding to match its own floating-point outputs.

    Continues from OUT/run. On several GPUs: accelerate launch -m vggt_int8 qat …
    """
    check_place(out)
    out = out.expanduser()
    from vggt_int8.training import qat as training

    training.check_out(out)
    fetch(model)
    end = training.train_qat(
        model,
        data,
        out,
        recipe,
        calibration=calibration or None,
        config=None if config is None else config.expanduser(),
        total_steps=total_steps,
        max_minutes=max_minutes,
        save_minutes=save_minutes,
        quiet=console.settings.quiet,
        on_image=_said,
    )
    if end is None:  # another process speaks for all
        return
    if as_json:
        console.document("qat", {"out": out, "model": model, "recipe": recipe, **asdict(end)})
        return
    console.say(
        f"stopped at step {end.step}: {end.reason}. {out}: the weights of step {end.best_step}, whose distance from "
        f"the floats is {end.best_loss:.4g} (untrained {end.start_loss:.4g})"
    )


def _said(done: int, total: int) -> None:
    console.note(f"read {done} of {console.count_images(total)}")
