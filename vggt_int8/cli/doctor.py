"""`vggt-int8 doctor`: check this machine: hardware, software, kernels, how many frames fit, and what is missing."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, options

if TYPE_CHECKING:
    from vggt_int8.doctor import Facts, Finding, Trial

RECIPES = ("fp16", "int8_rotated")
SIZES = ((294, 518), (392, 518), (518, 518))  # 16:9, 4:3 and square photographs as `run` fits them


def doctor(
    skip_run: Annotated[
        bool, typer.Option("--skip-run", help="Skip the trial run of the embedded model, which takes seconds.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Check this machine: GPU, driver, PyTorch, compiler, backends and kernels; a trial run; frames that fit.

    Exit code 1 if INT8 would not run as it should.
    """
    import torch

    from vggt_int8.doctor import findings, look, try_it

    with console.step("Looking at this machine"):
        facts = look()
    trial = None
    if not skip_run:
        with console.step(f"Running the embedded model on {facts.device_type}"):
            trial = try_it(torch.device(facts.device_type))
    fits = [row for gpu in facts.gpus for row in _fits(gpu.name, gpu.free_bytes)]
    found = findings(facts, trial)
    if as_json:
        trial_document = None if trial is None else asdict(trial)
        content: dict[str, Any] = {
            "facts": {**asdict(facts), "device_type": facts.device_type},
            "trial": trial_document,
        }
        console.document("doctor", {**content, "frames": fits, "findings": [asdict(finding) for finding in found]})
    else:
        _show(facts, trial, fits, found)
    if any(finding.level == "error" for finding in found):
        raise typer.Exit(1)


def _fits(gpu: str, free: int) -> list[dict[str, Any]]:
    """How many frames of VGGT-1B fit on a GPU with this much free memory, where CUDA's own memory is already taken."""
    from vggt_int8.model.config import VGGTConfig
    from vggt_int8.recipe import load_recipe
    from vggt_int8.runtime.fits import CONTEXT, Question, skeleton, stored_bytes

    rows = []
    for recipe in RECIPES:
        weights = stored_bytes(skeleton(VGGTConfig(), load_recipe(recipe))[0])
        for size in SIZES:
            question, memory = Question(VGGTConfig(), weights, size), free + CONTEXT
            rows.append(
                {
                    "gpu": gpu,
                    "recipe": recipe,
                    "size": list(size),
                    "frames_on_gpu": question.frames_on_gpu(memory),
                    "frames": question.most_frames(memory),
                }
            )
    return rows


def _show(facts: "Facts", trial: "Trial | None", fits: list[dict[str, Any]], found: "list[Finding]") -> None:
    console.show(_machine(facts))
    console.say("")
    console.show(_backends(facts))
    if trial is not None and not trial.error:
        worst = max(trial.errors.values())
        console.say("")
        console.say(
            f"embedded model, {trial.recipe}: {trial.mode}, {trial.seconds * 1e3:.0f} ms (first call "
            f"{trial.seconds_first:.1f} s), at most {worst:.1g} of an output's size off the definition"
        )
        for part, kernels in trial.kernels.items():
            console.say(f"  {part}: " + ", ".join(f"{kernel} x {number}" for kernel, number in kernels.items()))
        console.say(f"  global attention: {', '.join(trial.attention_kernels)}")
    if fits:
        console.say("")
        console.show(_frames(fits))
    console.say("")
    for finding in found:
        console.say(f"{finding.level}: {finding.what}. -> {finding.remedy}")
    if not any(finding.level == "error" for finding in found):
        console.say("INT8 runs here" if trial is not None else "nothing stands against INT8 here")


def _machine(facts: "Facts") -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    ram = "" if facts.ram_bytes is None else f", {facts.ram_bytes / 2**30:.0f} GiB"
    build = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {facts.hip}" if facts.hip else "CPU alone"
    table.add_row("system", facts.system)
    table.add_row("CPU", f"{facts.cpu}, {facts.threads} threads{ram}")
    table.add_row("CPU INT8 kernel", facts.cpu_kernel)
    table.add_row("C compiler", facts.compiler or "none")
    table.add_row("PyTorch", f"{facts.versions['torch']} ({build})")
    for gpu in facts.gpus:
        memory = f"{gpu.free_bytes / 2**30:.1f} of {gpu.total_bytes / 2**30:.1f} GiB free"
        table.add_row("GPU", f"{gpu.name}, compute capability {gpu.capability / 10}, {memory}")
    if facts.driver is not None:
        table.add_row("NVIDIA driver", facts.driver)
    others = [f"{name} {version}" for name, version in facts.versions.items() if version and name != "torch"]
    table.add_row("packages", ", ".join(others))
    table.add_row("model cache", f"{facts.cache} ({facts.cache_free_bytes / 1e9:.1f} GB free)")
    for name, value in facts.environment.items():
        table.add_row("setting", f"{name}={value}")
    return table


def _backends(facts: "Facts") -> Table:
    names = list(next(iter(facts.backends.values())))
    table = Table("INT8 layers", "auto takes", *names, box=None, pad_edge=False)
    for kind, reasons in facts.backends.items():
        table.add_row(kind, facts.chosen[kind], *("no" if reasons[name] else "yes" for name in names))
    return table


def _frames(rows: list[dict[str, Any]]) -> Table:
    title = ("VGGT-1B on", "recipe", "images", "frames, all on it", "frames, parts on the host")
    table = Table(*title, box=None, pad_edge=False)
    for row in rows:
        height, width = row["size"]
        table.add_row(
            row["gpu"], row["recipe"], f"{height} x {width}", f"{row['frames_on_gpu']:,}", f"{row['frames']:,}"
        )
    return table
