"""Common parts of options: early checks, shell completion, and the options of all commands.

Values are checked as far as possible without PyTorch before anything is loaded. The one-line error message gives the
option, the value, the closest match and the choices.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from vggt_int8.cli import console
from vggt_int8.embedded import EMBEDDED_MODELS
from vggt_int8.recipe import available_recipes, load_recipe

# Repeated here, since the modules that define them load PyTorch; a test compares the values.
BACKENDS = ("auto", "native", "torchao", "bitsandbytes", "reference")
DTYPES = ("fp32", "fp16", "bf16")
MODES = ("crop", "pad", "balanced", "max_size")
POINTS = ("depth", "world_points")
VIEW_COLORS = ("image", "confidence", "difference", "reconstruction")
BASELINES = (
    *("reference", "fp32", "bf16-autocast", "bf16", "fp16", "bf16-compiled-blocks", "bf16-compiled"),
    *("bf16-compiled-graph", "torchao", "torchao-compiled", "torchao-fp8-compiled", "keyframes", "fastvggt"),
)
SPLITS = ("free", "train", "held_out", "calibration", "demo")
UNITS = ("group", "block", "layer")
UPGRADES = ("weight_only", "weight_only_rotated", "keep")
COMPILABLE = ("render", "blocks", "heads")
# Names in other programs.
SYNONYMS = {
    "float32": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "gpu": "cuda",
    "bnb": "bitsandbytes",
}

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Results, warnings and errors only: no progress.", show_default=False)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also show messages of libraries, and details of each step."),
]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="VGGT_INT8_DEBUG", help="Like --verbose, with tracebacks instead of messages.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout instead of text; errors stay on stderr.")
]


def choice(kind: str, *values: str) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` for one of `values`: listed, completed, and checked before anything runs."""

    def check(value: str) -> None:
        if value not in values:
            raise ValueError(f"{_absent(kind, value, values)} choose one of {', '.join(values)}")

    listed = "|".join(values)
    return {"metavar": listed if len(listed) <= 20 else "NAME", **checked(check, values)}


def choices(kind: str, *values: str) -> dict[str, Any]:
    """The same for several of them."""
    return repeatable(choice(kind, *values))


def recipe_option() -> dict[str, Any]:
    """The same for a shipped recipe's name or a .toml file, which is read to check it."""

    def check(value: str) -> None:
        names = available_recipes()
        if not value.endswith(".toml") and value not in names:
            raise ValueError(
                f"{_absent('recipe', value, names)} choose one of {', '.join(names)}, or pass the path of your own "
                "file, ending in .toml"
            )
        load_recipe(value)

    return {"metavar": "RECIPE", **checked(check, available_recipes)}


def recipes_option() -> dict[str, Any]:
    """The same for several."""
    return repeatable(recipe_option())


def device_option() -> dict[str, Any]:
    """The same for a device. Whether it exists on this machine is checked later, when PyTorch is loaded."""

    def check(value: str) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            raise ValueError(f"{_absent('device', value, ('cpu', 'cuda'))} choose cpu, cuda or cuda:<number>")

    return {"metavar": "cpu|cuda|cuda:N", **checked(check, ("cpu", "cuda"))}


def size_option() -> dict[str, Any]:
    """The same for a file size."""

    def check(value: str) -> None:
        number = re.fullmatch(r"(\d+(?:\.\d+)?) *[KMGT]B", value.strip(), flags=re.IGNORECASE)
        if number is None or float(number[1]) == 0:
            raise ValueError(f"{value!r} is no size: give a number above 0 and KB, MB, GB or TB, such as 5GB")

    return {"metavar": "SIZE", **checked(check, ("5GB", "2GB", "500MB"))}


def between(low: float, high: float = math.inf) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` for a number from `low` to `high`."""
    numbers = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"

    def check(value: float) -> None:
        if not low <= value <= high:  # which NaN is not either
            raise ValueError(f"{value:g} is out of range, it must be {numbers}")

    return checked(check)


def seed_option() -> dict[str, Any]:
    """The same for a seed, in the range of random generators and of calibration's hash."""
    return between(0, 2**63 - 1)


def each_between(low: float) -> dict[str, Any]:
    """The same for several numbers, each at least `low`."""

    def check(values: Iterable[float]) -> None:
        for value in values:
            if not low <= value:
                raise ValueError(f"{value:g} is out of range, it must be at least {low:g}")

    return checked(check)


def file_option() -> dict[str, Any]:
    """The same for a file that must exist."""

    def check(value: Path) -> None:
        if not value.expanduser().is_file():
            raise ValueError(f"{value} is {'a folder' if value.expanduser().is_dir() else 'not there'}: give a file")

    return {"callback": checked(check)["callback"]}  # the shell completes names of files itself


def list_option(kind: str, *values: str) -> dict[str, Any]:
    """The same for some of `values`, separated by commas."""

    def check(value: str) -> None:
        for name in value.split(","):
            if name.strip() not in values:
                raise ValueError(f"{_absent(kind, name.strip(), values)} choose from {', '.join(values)}")

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in values if name.startswith(last)]

    return {"metavar": "NAME,NAME", **checked(check), "autocompletion": offer}


def compile_option() -> dict[str, Any]:
    """The same for what training compiles, separated by commas, or "none"."""

    def check(value: str) -> None:
        for name in value.split(",") if value != "none" else ():
            if name not in COMPILABLE:
                known = (*COMPILABLE, "none")
                raise ValueError(f"{_absent('part to compile', name, known)} choose from {', '.join(known)}")

    return {"metavar": "NAME,NAME", **checked(check, (*COMPILABLE, "none"))}


def variants_option() -> dict[str, Any]:
    """The same for the variants of `bench`, separated by commas."""
    backends = BACKENDS[1:]

    def check(value: str) -> None:
        for variant in value.split(","):
            first, colon, backend = variant.strip().rpartition(":")
            if not colon and backend not in BASELINES:
                choices = f"{', '.join(BASELINES)}, or <recipe>:<backend>"
                raise ValueError(f"{_absent('variant', backend, BASELINES)} choose from {choices}")
            if colon:
                load_recipe(first)
                if backend not in backends:
                    raise ValueError(f"{_absent('backend', backend, backends)} choose one of {', '.join(backends)}")

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        names = [*BASELINES, *(f"{recipe}:{backend}" for recipe in available_recipes() for backend in backends)]
        return [before + comma + name for name in names if name.startswith(last)]

    return {**checked(check), "autocompletion": offer}


def offer_embedded(incomplete: str) -> list[str]:
    """Complete an embedded model's name after its first letter; otherwise the shell completes file names."""
    return [name for name in EMBEDDED_MODELS if incomplete and name.startswith(incomplete)]


def repeatable(one: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` for a single value -> the same for a list of such values."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, values: list[str] | None) -> list[str] | None:
        for value in values or ():
            one["callback"](ctx, param, value)
        return values

    return {**one, "callback": callback}


def checked(check: Callable[[Any], object], values: Iterable[str] | Callable[[], Iterable[str]] = ()) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` for a value that `check` can reject by raising ValueError."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        if value is not None and not ctx.resilient_parsing:  # which is how the shell's completion parses
            try:
                check(value)
            except ValueError as error:
                option, message = max(param.opts, key=len), str(error)
                console.complain(message if message.startswith(option) else f"{option}: {message}")
                raise typer.Exit(2) from None
        return value

    def offer(incomplete: str) -> list[str]:
        return [name for name in (values() if callable(values) else values) if name.startswith(incomplete)]

    return {"callback": callback, "autocompletion": offer}


def _absent(kind: str, value: str, values: Iterable[str]) -> str:
    """For example "there is no backend 'nativ' (did you mean 'native'?):", without the question if nothing is
    similar.
    """
    spelt = {_letters(name): name for name in values}
    near = difflib.get_close_matches(_letters(SYNONYMS.get(value.lower(), value)), spelt, n=1)
    meant = f" (did you mean {spelt[near[0]]!r}?)" if near else ""
    return f"there is no {kind} {value!r}{meant}:"


def _letters(name: str) -> str:
    """The normalized name for comparisons: "INT8-Dynamic" is similar to "int8_dynamic"."""
    return re.sub(r"[\W_]", "", name).lower()


def set_globals(quiet: bool, verbose: bool, debug: bool) -> None:
    """Raises typer.Exit for --quiet and --verbose together."""
    if quiet and (verbose or debug):
        console.complain(f"--quiet and --{'debug' if debug else 'verbose'} contradict each other: give one of them")
        raise typer.Exit(2)
    console.settings.quiet, console.settings.verbose, console.settings.debug = quiet, verbose or debug, debug


def with_globals(command: Callable[..., None]) -> Callable[..., None]:
    """Add the global options to a subcommand, since they are accepted before or after it."""

    @functools.wraps(command)
    def run(*args: Any, quiet: bool, verbose: bool, debug: bool, **kwargs: Any) -> None:
        before = console.settings
        set_globals(quiet or before.quiet, verbose or before.verbose, debug or before.debug)
        with console.documents_only() if kwargs.get("as_json") else nullcontext():
            command(*args, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    added = {"quiet": Quiet, "verbose": Verbose, "debug": Debug}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in added.items()
    ]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *parameters]
    )
    run.__annotations__ = {**command.__annotations__, **added}
    return run


SyntheticSize = Annotated[
    tuple[int, int] | None,
    typer.Option(
        help="Height and width of synthetic images; by default the model's square.",
        metavar="H W",
        show_default=False,
        **each_between(1),
    ),
]
