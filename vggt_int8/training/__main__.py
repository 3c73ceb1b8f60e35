"""Commands of training:

python -m vggt_int8.training run --config FILE --out DIR [--init FOLDER [--first-step N]] [--max-minutes M]
                                      [--total-steps N]
    Train, or go on where DIR/checkpoint stands; with --init a new run starts from a model folder's weights, at step
    --first-step as if the parts before it had made them.
    FILE may have several parts ([[then]]), one schedule after the other.
    Several GPUs: `accelerate launch -m vggt_int8.training run ...`.
python -m vggt_int8.training measure --config FILE --out DIR [--max-minutes M]
    A short run of the first part in DIR/measure that prints what rendering, each part of a step and the memory cost.
python -m vggt_int8.training export --out DIR --to FOLDER
    The checkpoint as a model folder in fp16 (config.json and model.safetensors).
python -m vggt_int8.training plot LOG.jsonl... -o CURVES.svg
    Losses and held-out scores over the steps.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from vggt_int8.chart import check_chart
from vggt_int8.disk import check_place
from vggt_int8.encoding import accept_any_character
from vggt_int8.interrupts import heeded
from vggt_int8.model import VGGT
from vggt_int8.training.checkpoint import load_checkpoint, read_facts, save_checkpoint
from vggt_int8.training.config import TrainingConfig, config_from_table, end_run_at, first_difference, load_run
from vggt_int8.training.loop import check_run_folder, train_run
from vggt_int8.training.measure import measure
from vggt_int8.training.plot import write_curves


def main(arguments: list[str] | None = None) -> None:
    accept_any_character()
    args = _parser().parse_args(arguments)
    match args.command:
        case "run":
            check_run_folder(args.out)
            parts = _parts(args)
            if args.init is not None and (args.out / "checkpoint").exists():
                raise ValueError(f"{args.out} holds a run already: leave --init out to go on, or name another --out")
            if args.init is None and args.first_step:
                raise ValueError("--first-step is for weights that are given with --init")
            model = None if args.init is None else trained_model(args.init, parts[0])
            if model is not None and args.first_step:
                start_at(args.first_step, parts, args.out, model)
                model = None
            train_run(parts, args.out, args.max_minutes, args.save_minutes, model)
        case "measure":
            check_run_folder(args.out / "measure")
            measure(_parts(args)[0], args.out, args.max_minutes)
        case "export":
            check_place(args.to)
            export(args.out, args.to)
            print(f"wrote {args.to}")
        case "plot":
            check_chart(args.output)
            write_curves(args.logs, args.output)
            print(f"wrote {args.output}")


def trained_model(folder: Path, config: TrainingConfig) -> VGGT:
    """The weights of a model folder in fp32, to be trained on. Raises ValueError if they are of another network."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: --init takes a model's, with config.json and weights")
    model = VGGT.from_pretrained(folder, dtype=torch.float32)
    if difference := first_difference(model.config, config.vggt()):
        key, found, wanted = difference
        raise ValueError(f"{folder} is another network than [model]: {key} is {found}, not {wanted}")
    return model


def start_at(step: int, parts: Sequence[TrainingConfig], out: Path, model: VGGT) -> None:
    """A checkpoint in `out` with the model's weights at a step within the run, and without moments of optimizers."""
    part = next((part for part in parts if part.optimizer.total_steps > step), None)
    if step < 0 or part is None:
        raise ValueError(f"--first-step {step} must lie in the run: 0 ... {parts[-1].optimizer.total_steps - 1}")
    facts = {"step": step, "seconds": 0.0, "config": dataclasses.asdict(part)}
    save_checkpoint(out / "checkpoint", model, [], facts)


def export(out: Path, folder: Path) -> None:
    """The weights of `out/checkpoint` as an fp16 model folder that `VGGT.from_pretrained` reads."""
    config = config_from_table(read_facts(out / "checkpoint")["config"])
    model = VGGT(config.vggt())
    load_checkpoint(out / "checkpoint", model)
    largest = max(parameter.abs().max().item() for parameter in model.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise ValueError(f"a weight of {largest:g} does not fit into fp16")
    model.half().save_pretrained(folder)


def _parts(args: argparse.Namespace) -> list[TrainingConfig]:
    parts = load_run(args.config)
    if args.total_steps is not None:
        parts = end_run_at(parts, args.total_steps)
    if args.compile is not None:
        compiled = () if args.compile == "none" else tuple(args.compile.split(","))
        parts = [dataclasses.replace(part, compile=compiled) for part in parts]
    return parts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vggt_int8.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run, measured = commands.add_parser("run"), commands.add_parser("measure")
    for command in (run, measured):
        command.add_argument("--config", type=Path, required=True, help="TOML file")
        command.add_argument("--out", type=Path, required=True, help="folder of the run")
        command.add_argument("--total-steps", type=int, help="instead of the file's: when to be done, decay included")
        command.add_argument("--compile", help="instead of the file's: render,blocks,heads or none")
    run.add_argument("--init", type=Path, help="model folder whose weights a new run starts from")
    run.add_argument("--first-step", type=int, default=0, help="with --init: where in the run these weights stand")
    run.add_argument("--max-minutes", type=float, help="stop cleanly within this time, validation included")
    run.add_argument("--save-minutes", type=float, default=4.0, help="time between checkpoints")
    measured.add_argument("--max-minutes", type=float, default=4.0, help="time for all of it")
    exported = commands.add_parser("export")
    exported.add_argument("--out", type=Path, required=True, help="folder of the run")
    exported.add_argument("--to", type=Path, required=True, help="model folder to write")
    plotted = commands.add_parser("plot")
    plotted.add_argument("logs", type=Path, nargs="+", help="log.jsonl files of one run, in order")
    plotted.add_argument("-o", "--output", type=Path, required=True, help="SVG file to write")
    return parser


if __name__ == "__main__":
    with heeded():
        main()
