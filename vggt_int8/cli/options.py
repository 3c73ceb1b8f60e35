"""What options have in common: values that are checked early and completed by the shell, and options of all commands.

Whatever can be said about a value without PyTorch is said before anything is loaded, in one line that names the
option, the value, what it may have meant and what there is to choose from.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from vggt_int8.cli import console
from vggt_int8.recipe import available_recipes, load_recipe

# Written out here, since the modules that own them load PyTorch; a test compares.
BACKENDS = ("auto", "native", "torchao", "bitsandbytes", "reference")
DTYPES = ("fp32", "fp16", "bf16")
MODES = ("crop", "pad")
BASELINES = (
    *("reference", "fp32", "bf16-autocast", "bf16", "fp16", "bf16-compiled-blocks", "bf16-compiled"),
    *("bf16-compiled-graph", "torchao", "torchao-compiled"),
)
# What other programs call them.
SYNONYMS = {"float32": "fp32", "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "gpu": "cuda", "bnb": BACKENDS[3]}

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Results, warnings and errors only: no progress.", show_default=False)
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Also the libraries' own messages, and details of each step."),
]
Debug = Annotated[
    bool, typer.Option("--debug", envvar="VGGT_INT8_DEBUG", help="As --verbose, and tracebacks instead of messages.")
]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON document on stdout instead of text; errors stay on stderr.")
]


def choice(*values: str) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` for one of `values`: shown, completed, and checked before anything runs."""

    def check(name: str, value: str) -> None:
        if value not in values:
            raise ValueError(f"{name} is {value!r}{_meant(value, values)}: choose one of {', '.join(values)}")

    listed = "|".join(values)
    return {"metavar": listed if len(listed) <= 20 else "NAME", **checked(check, values)}


def recipe_option() -> dict[str, Any]:
    """The same for a shipped recipe's name or a .toml file, which is read to check it."""

    def check(name: str, value: str) -> None:
        names = available_recipes()
        if not value.endswith(".toml") and value not in names:
            raise ValueError(
                f"{name} is {value!r}{_meant(value, names)}: choose one of {', '.join(names)}, or pass the path of "
                "your own recipe, ending in .toml"
            )
        load_recipe(value)

    return {"metavar": "RECIPE", **checked(check, available_recipes)}


def device_option() -> dict[str, Any]:
    """The same for a device. Whether this machine has it is known later, when PyTorch is loaded."""

    def check(name: str, value: str) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", value):
            raise ValueError(
                f"{name} is {value!r}{_meant(value, ('cpu', 'cuda'))}: there is no such device, choose cpu, cuda or "
                "cuda:<number>"
            )

    return {"metavar": "cpu|cuda|cuda:N", **checked(check, ("cpu", "cuda"))}


def variants_option() -> dict[str, Any]:
    """The same for the variants of `bench`, separated by commas."""

    def check(name: str, value: str) -> None:
        for variant in value.split(","):
            recipe, colon, backend = variant.strip().rpartition(":")
            if colon and backend in BACKENDS[1:]:
                load_recipe(recipe)
            elif not colon and backend not in BASELINES:
                raise ValueError(
                    f"{name} has {backend!r}{_meant(backend, BASELINES)}: choose of {', '.join(BASELINES)}, or "
                    "<recipe>:<backend>"
                )
            elif colon:
                raise ValueError(
                    f"{name} has {variant.strip()!r}{_meant(backend, BACKENDS[1:])}: after the recipe choose one of "
                    f"{', '.join(BACKENDS[1:])}"
                )

    def offer(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        names = [*BASELINES, *(f"{recipe}:{b}" for recipe in available_recipes() for b in BACKENDS[1:])]
        return [before + comma + name for name in names if name.startswith(last)]

    return {**checked(check, ()), "autocompletion": offer}


def checked(check: Callable[[str, str], None], values: Iterable[str] | Callable[[], Iterable[str]]) -> dict[str, Any]:
    """Keyword arguments of `typer.Option` whose value `check(option, value)` may refuse by raising ValueError."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and not ctx.resilient_parsing:  # which is how the shell's completion parses
            try:
                check(max(param.opts, key=len), value)
            except ValueError as error:
                console.complain(str(error))
                raise typer.Exit(2) from None
        return value

    def offer(incomplete: str) -> list[str]:
        return [name for name in (values() if callable(values) else values) if name.startswith(incomplete)]

    return {"callback": callback, "autocompletion": offer}


def _meant(value: str, values: Iterable[str]) -> str:
    """ " (did you mean 'native'?)", or nothing where none is near."""
    spelt = {_letters(name): name for name in values}
    word = SYNONYMS.get(value.lower(), value)
    near = difflib.get_close_matches(_letters(word), spelt, n=1)
    return f" (did you mean {spelt[near[0]]!r}?)" if near else ""


def _letters(name: str) -> str:
    """What of a name counts when it is compared: "INT8-Dynamic" is near "int8_dynamic"."""
    return re.sub(r"[\W_]", "", name).lower()


def set_globals(quiet: bool, verbose: bool, debug: bool) -> None:
    """Raises typer.Exit for --quiet and --verbose together."""
    if quiet and (verbose or debug):
        console.complain(f"--quiet and --{'debug' if debug else 'verbose'} contradict each other: give one of them")
        raise typer.Exit(2)
    console.settings.quiet, console.settings.verbose, console.settings.debug = quiet, verbose or debug, debug


def with_globals(command: Callable[..., None]) -> Callable[..., None]:
    """Give a subcommand the options that may also stand before it: people type them at either place."""

    @functools.wraps(command)
    def run(*args: Any, quiet: bool, verbose: bool, debug: bool, **kwargs: Any) -> None:
        before = console.settings
        set_globals(quiet or before.quiet, verbose or before.verbose, debug or before.debug)
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
