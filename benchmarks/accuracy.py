"""The table of accuracy: recipes on a plain model and on harder variants of it, against fp32 of the same variant.

    python -m benchmarks.accuracy -o FOLDER                        # the shipped numbers: 128 scenes x 8 views
    python -m benchmarks.accuracy -o FOLDER --scenes 8 --recipes int8_dynamic int8_rotated     # a try, in minutes
    python -m benchmarks.accuracy -o FOLDER --write README.md      # and put the table between its markers there

Variants: `benchmarks.accuracy_models`. Rows: shipped recipes or .toml files, calibrated where they need it on scenes
that no row is scored on (split "calibration"); `int8_qat`, which is trained first, minutes on a GPU and hours without;
and with --checkpoints LABEL:KIND=FOLDER what was made elsewhere, as by `vggt-int8 qat`. What a row is:
`benchmarks.accuracy_rows`. Columns, limits and what counts as missed: `benchmarks.accuracy_table`. The model with real
weights is judged by `vggt-int8 eval facebook/VGGT-1B -r RECIPE ... --data FOLDER`.

FOLDER keeps scenes, variants, predictions in fp32, trainings and a file for each finished row, so a run that was
stopped goes on, and new recipes add rows. Another model, size, number of scenes or of views wants another folder. Rows
are shared out to processes (--processes), which on a GPU take turns.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.accuracy_models import check_kind, save_kinds
from benchmarks.accuracy_rows import FP32, TRAINED, Job, Settings, is_done, make_row, row_file
from benchmarks.accuracy_table import RECIPES, markdown
from vggt_int8 import load_recipe
from vggt_int8.bench.table import update_readme
from vggt_int8.embedded import resolve_source
from vggt_int8.export.repeat import identify_model
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import write_json
from vggt_int8.plain_data import finite
from vggt_int8.pretrained.source import load_config

KINDS = ["plain", "channels:0", "channels:7", "channels:11", "tokens:0"]


def main(command_line: list[str] | None = None) -> None:
    arguments = parse(command_line)
    start = time.perf_counter()
    out = arguments.out
    config = load_config(resolve_source(arguments.model), {})
    size = tuple(arguments.size or (config.img_size, config.img_size))
    settings = Settings(
        out, (size[0], size[1]), arguments.scenes, arguments.views, tuple(arguments.pixel_aspect),
        arguments.calibration_scenes, arguments.device, arguments.backend,
    )  # fmt: skip
    check_folder(settings, arguments.model)
    save_kinds(arguments.model, arguments.kinds, out, settings.size)
    first = [Job(kind, FP32) for kind in arguments.kinds]
    rest = [Job(kind, recipe) for recipe in arguments.recipes for kind in arguments.kinds]
    rest += [job for job in arguments.checkpoints if job.kind in arguments.kinds]
    with workers(arguments.processes) as pool:
        run(pool, settings, first)
        run(pool, settings, sorted(rest, key=lambda job: job.label not in TRAINED))  # what takes longest goes first
    rows = [json.loads(row_file(settings, job).read_text(encoding="utf-8")) for job in (*first, *rest)]
    document = {
        "format_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": shown_command(command_line or sys.argv[1:]),
        "machine": describe_machine(torch.device(settings.device)),
        "versions": installed_versions(),
        "settings": {**settings.identity(), "backend": settings.backend, "calibration_scenes": settings.calibration},
        "seconds": time.perf_counter() - start,
        "rows": rows,
    }
    write_json(out / "accuracy.json", finite(document))
    print(markdown(document))
    for path in arguments.write:
        update_readme(path, markdown(document, chinese=path.name.endswith("zh-CN.md")), "accuracy")


def shown_command(words: list[str]) -> str:
    """As a reader would call it for the same numbers: folders by their names, wherever they lay, and nothing of what
    decides no number."""
    shown, skipped = ["python -m benchmarks.accuracy"], False
    for word in words:
        skipped = word in ("--write", "--processes") or (skipped and not word.startswith("-"))
        if not skipped:
            shown.append(Path(word).name if Path(word).is_absolute() else word)
    return " ".join(shown)


def parse(command_line: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    mini = Path(__file__).parent.parent / "vggt_int8" / "assets" / "mini"
    parser.add_argument("--out", "-o", type=Path, required=True, help="folder, see above")
    parser.add_argument("--model", default=str(mini), help="folder of a floating-point model")
    parser.add_argument("--recipes", nargs="*", default=[*RECIPES, *TRAINED], help="rows beside fp32")
    parser.add_argument("--kinds", nargs="+", default=KINDS, help="plain, channels:SEED, tokens:SEED")
    parser.add_argument(
        "--checkpoints", nargs="*", default=[], metavar="LABEL:KIND=FOLDER", help="finished INT8 models"
    )
    parser.add_argument("--backend", default="auto", help="what runs INT8 layers: reference, native, auto, ...")
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels; else the model's square")
    parser.add_argument("--pixel-aspect", type=float, nargs=2, default=(1.0, 1.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--calibration-scenes", type=int, default=16)
    parser.add_argument("--processes", type=int, default=8 if default == "cuda" else 2)
    parser.add_argument("--device", default=default)
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="documents that get the table")
    arguments = parser.parse_args(command_line)
    for name in ("scenes", "views", "calibration_scenes", "processes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: at least 1 is needed")
    try:
        for kind in arguments.kinds:
            check_kind(kind)
        arguments.checkpoints = [_checkpoint(text) for text in arguments.checkpoints]
        for recipe in arguments.recipes:
            load_recipe(TRAINED.get(recipe, recipe))
        if twice := {job.label for job in arguments.checkpoints} & set(arguments.recipes):
            raise ValueError(f"--checkpoints names {min(twice)}, which --recipes makes: give it another label")
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _checkpoint(text: str) -> Job:
    name, found, folder = text.partition("=")
    label, colon, kind = name.partition(":")
    if not (found and colon and label and folder):
        raise ValueError(f"--checkpoints {text!r} is not of the form LABEL:KIND=FOLDER, as int8_qat:tokens:0=qat")
    check_kind(kind)
    return Job(kind, label, folder)


def check_folder(settings: Settings, model: str) -> None:
    """Write what the folder is of. Raises ValueError, naming the way out, if it is of something else."""
    path = settings.out / "settings.json"
    wanted = {"model": identify_model(model)["value"], **settings.identity()}
    if not path.is_file():
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    found = json.loads(path.read_text(encoding="utf-8"))
    if wrong := [key for key in wanted if found.get(key) != wanted[key]]:
        raise ValueError(
            f"{settings.out} holds rows of another {wrong[0]} ({found.get(wrong[0])}, asked for is "
            f"{wanted[wrong[0]]}): choose another --out"
        )


def workers(processes: int) -> ProcessPoolExecutor:
    threads = max(1, torch.get_num_threads() // processes)  # of as many as OMP_NUM_THREADS or the machine says
    return ProcessPoolExecutor(processes, get_context("spawn"), _begin, (threads,))


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    disable_progress_bar()  # of loading, which all processes would draw at once


def run(pool: ProcessPoolExecutor, settings: Settings, jobs: list[Job]) -> None:
    """Rows that are not there yet, each said as it is done."""
    waiting = {pool.submit(make_row, settings, job): job for job in jobs if not is_done(settings, job)}
    for number, future in enumerate(as_completed(waiting), 1):
        job = waiting[future]
        try:
            seconds = future.result()
        except Exception as error:
            error.add_note(f"in the row {job.label} on {job.kind}; finished rows are kept in {settings.out}")
            raise
        print(f"{number}/{len(waiting)} {job.label} on {job.kind}: {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
