"""`vggt-int8 bench`: time, memory and error of many ways to run VGGT on this machine; `bench-report`: tables of
them.
"""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vggt_int8.cli import console, options
from vggt_int8.cli.loading import Device, resolve_device
from vggt_int8.disk import check_place
from vggt_int8.embedded import EMBEDDED_NAMES

if TYPE_CHECKING:
    import torch

    from vggt_int8.bench.records import Row
    from vggt_int8.bench.sweep import Settings

FRAMES = {"cuda": "1,2,4,10,32,100,200", "cpu": "1,2,4"}
SIZE = {"cuda": "392x518", "cpu": "112x112"}
OF_16 = "416x624"  # where patches have 16 pixels, VGGT-Omega's
BASELINES = ", ".join(options.BASELINES)
COLUMNS = (
    f"{'variant':26s} {'frames':>6s} {'ms':>9s} {'p20-p80':>17s} {'first s':>8s} {'peak GiB':>9s} "
    f"{'of ceiling':>10s} {'rel. error':>10s} {'max abs.':>9s}"
)


def bench(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"A floating-point checkpoint (folder, file, Hub model, {EMBEDDED_NAMES}), random:vggt-1b, "
            "random:vggt-omega, random:small or random:<config.json>; by default random:vggt-1b on cuda, random:small "
            "on cpu.",
            show_default=False,
        ),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            help=f"Numbers of frames; by default {FRAMES['cuda']}, on cpu {FRAMES['cpu']}.",
            metavar="N,N",
            **options.checked(lambda text: _numbers("--frames", text, ",")),
        ),
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            help=f"Variants, separated by commas: {BASELINES}, or <recipe>:<backend> such as int8_dynamic:native.",
            **options.variants_option(),
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help=f"Height x width, pixels; by default {SIZE['cuda']} (of VGGT-Omega {OF_16}), on cpu {SIZE['cpu']}.",
            metavar="HxW",
            **options.checked(lambda text: height_and_width(text)),
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Duration of the measurement per row; 0 measures only the first call.")
    ] = 1.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to which rows are appended, as JSON lines.")] = Path(
        "vggt-int8-bench.jsonl"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip measurements that the file already contains, from this machine.")
    ] = False,
    device: Device = None,
    memory_gb: Annotated[
        float | None, typer.Option(help="Limit the GPU memory to this many GB (1e9 bytes).", show_default=False)
    ] = None,
    compile_limit: Annotated[
        float, typer.Option(min=1, help="Time limit for torch.compile per row, in seconds.")
    ] = 180.0,
    profile: Annotated[
        Path | None, typer.Option(help="Folder for a table of kernel times per row.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure time, peak memory and error of VGGT's forward pass: libraries, compiled baselines and our recipes."""
    from vggt_int8.bench.records import append_row, identity, read_rows
    from vggt_int8.bench.source import default_source, load_source
    from vggt_int8.bench.sweep import Sweep

    target = _indexed(resolve_device(device))
    chosen = model or default_source(target)
    settings = _settings(target.type, frames, variants, size, seconds, memory_gb, compile_limit, profile)
    out, profile = out.expanduser(), None if profile is None else profile.expanduser()
    for place in (out, profile):  # before minutes of loading and measuring
        if place is not None:
            check_place(place)
    if profile is not None and profile.exists() and not profile.is_dir():
        raise NotADirectoryError(f"--profile {profile} is a file, a folder is needed")
    earlier = read_rows([out]) if out.exists() else []  # a file that rows cannot be added to is refused first
    done = {identity(row) for row in earlier if resume and row["status"] == "ok"}
    with console.step(f"Preparing {chosen} on {target}"):
        source = load_source(chosen, target)
        if size is None and settings.size[0] % source.config.patch_size and not 416 % source.config.patch_size:
            settings = replace(settings, size=height_and_width(OF_16))
        _check_size(settings.size, source.config.patch_size)
        sweep = Sweep(source, target, settings)
    say = console.note if as_json else console.say
    for line in sweep.card():
        say(line)
    left_out = _left_out(settings)
    if left_out:
        say(f"left out, since slow there (name them in --variants to measure them): {left_out}")
    say(COLUMNS)
    rows = []
    for row in sweep.rows(done):
        say(_line(row))
        append_row(out, row)
        rows.append(row)
    if as_json:
        console.document("bench", {"out": out, "model": chosen, "left_out": left_out, "rows": rows})
        return
    console.say(f"Rows are in {out}: `vggt-int8 bench-report {out}` makes a table of them")


def bench_report(
    results: Annotated[list[Path], typer.Argument(help="Files of `vggt-int8 bench`.", show_default=False)],
    readme: Annotated[
        Path | None,
        typer.Option(help="Put the table between the markers of this file instead of showing it.", show_default=False),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw this SVG file.", show_default=False)] = None,
    as_json: options.Json = False,
) -> None:
    """Turn results into a Markdown table, on the console or in a README, and a plot."""
    import os

    from vggt_int8.bench.plot import write_plot
    from vggt_int8.bench.records import read_rows
    from vggt_int8.bench.table import markdown, update_readme, with_table
    from vggt_int8.chart import check_chart

    readme, plot = (None if path is None else path.expanduser() for path in (readme, plot))
    rows = read_rows(path.expanduser() for path in results)
    base = Path() if readme is None else readme.parent
    link = None if plot is None else Path(os.path.relpath(plot, base)).as_posix()
    text = markdown(rows, link)  # which may refuse the rows, before anything is written
    if readme is not None:
        with_table(readme, text)  # and so may this
    if plot is not None:
        check_chart(plot)
        write_plot(rows, plot)
    changed = False if readme is None else update_readme(readme, text)
    if as_json:
        files = {"plot": plot, "readme": readme, "readme_changed": changed}
        console.document("bench-report", {"results": results, "table": text, "rows": rows, **files})
        return
    if plot is not None:
        console.say(f"{plot}: drawn")
    console.say(text if readme is None else f"{readme}: {'updated' if changed else 'up to date'}")


def _settings(
    device_type: str,
    frames: str | None,
    variants: str | None,
    size: str | None,
    seconds: float,
    memory_gb: float | None,
    compile_limit: float,
    profile: Path | None,
) -> "Settings":
    """Raises ValueError, `RecipeError` or `BackendError`, naming the wrong value."""
    import torch

    from vggt_int8.bench.sweep import Settings
    from vggt_int8.bench.variants import DEFAULTS, find_variants

    names = DEFAULTS[device_type] if variants is None else [name.strip() for name in variants.split(",")]
    if memory_gb is not None:
        if device_type != "cuda":
            raise ValueError(f"--memory-gb {memory_gb:g} limits a GPU, and this runs on the CPU")
        total = torch.cuda.mem_get_info()[1] / 1e9
        if not 0 < memory_gb <= total:
            raise ValueError(f"--memory-gb is {memory_gb:g}, and this GPU has {total:.1f} GB")
    return Settings(
        frames=_numbers("--frames", FRAMES[device_type] if frames is None else frames, ","),
        size=height_and_width(SIZE[device_type] if size is None else size),
        variants=tuple(find_variants(names)),
        seconds=seconds,
        memory_gb=memory_gb,
        compile_limit=compile_limit,
        profile=profile,
        everything=variants is not None,
        command=shlex.join(["vggt-int8", *sys.argv[1:]]),
    )


def _numbers(option: str, text: str, separator: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{option} is {text!r}: give whole numbers above 0, separated by {separator!r}")
    return tuple(dict.fromkeys(numbers)) if separator == "," else numbers


def height_and_width(text: str) -> tuple[int, int]:
    """Parse a size such as "392x518". Raises ValueError."""
    numbers = _numbers("--size", text, "x")
    if len(numbers) != 2:
        raise ValueError(f"--size is {text!r}: give height x width, such as {SIZE['cuda']}")
    return numbers[0], numbers[1]


def _check_size(size: tuple[int, int], patch: int) -> None:
    if size[0] % patch or size[1] % patch:
        raise ValueError(f"--size is {size[0]}x{size[1]}: both must be multiples of the model's patch size {patch}")


def _left_out(settings: "Settings") -> str:
    """The variants that the default sweep does not measure, with the numbers of frames."""
    missing: dict[tuple[int, ...], list[str]] = {}
    for variant in settings.variants:
        if frames := tuple(s for s in settings.frames if s not in settings.frames_of(variant)):
            missing.setdefault(frames, []).append(variant.name)
    return "; ".join(f"{', '.join(map(str, s))} frames: {', '.join(names)}" for s, names in missing.items())


def _indexed(device: "torch.device") -> "torch.device":
    """cuda -> cuda:0, since PyTorch's memory functions need an index."""
    import torch

    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _line(row: "Row") -> str:
    """A table row; without a time it shows the reason."""
    start = f"{row['variant']:26s} {row['frames']:6d}"
    if row["status"] != "ok":
        return f"{start}  {row['status']}: {row['reason']}"
    spread = "" if row["ms_low"] is None else f"{row['ms_low']:.1f}-{row['ms_high']:.1f}"
    peak = "–" if row["peak_gib"] is None else f"{row['peak_gib']:.2f}"
    share = "–" if row["share"] is None else f"{row['share']:.0%}"
    line = f"{start} {row['ms']:9.2f} {spread:>17s} {row['first_s']:8.1f} {peak:>9s} {share:>10s}"
    if not row["errors"]:
        return f"{line}  unchecked: nothing to compare with at so many frames"
    relative, largest = (max(e[key] for e in row["errors"].values()) for key in ("relative", "max_abs"))
    note = "" if row["compared_with"] == "fp32" else f"  (against {row['compared_with']})"
    return f"{line} {relative:10.5f} {largest:9.3g}{note}"
