"""Options shared by several commands, and model loading with progress display."""

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from vggt_int8.cli import console, options
from vggt_int8.disk import naming
from vggt_int8.embedded import EMBEDDED_MODELS, EMBEDDED_NAMES

if TYPE_CHECKING:
    import torch

    from vggt_int8.images import ImageTransform
    from vggt_int8.images import Mode as FitMode
    from vggt_int8.pretrained.int8_network import Int8Network

Model = Annotated[
    str,
    typer.Argument(
        help=f"A folder, a file, a model on the Hugging Face Hub, or one that ships: {EMBEDDED_NAMES}.",
        show_default=False,
        autocompletion=options.offer_embedded,
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(help="Image files, folders or patterns; a folder is read in natural order.", show_default=False),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="Quantize while loading: a shipped recipe's name (see `vggt-int8 recipes`) or a .toml file.",
        **options.recipe_option(),
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help=f"What runs INT8 layers: {', '.join(options.BACKENDS)}.", **options.choice("backend", *options.BACKENDS)
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device; by default cuda if available.", **options.device_option()),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Compute dtype; by default fp16 on cuda and fp32 on cpu.", **options.choice("dtype", *options.DTYPES)
    ),
]
Mode = Annotated[
    str,
    typer.Option(
        help="Resize images with crop (width fills the model), pad (nothing is cut off) or, keeping their shape, "
        "balanced (as many pixels as a square) or max_size (the longer side fills the model).",
        **options.choice("mode", *options.MODES),
    ),
]
MaxMegapixels = Annotated[
    float | None,
    typer.Option(
        help="Largest image to decode, in millions of pixels; by default 250.",
        metavar="MP",
        **options.between(0.001, 1e6),
    ),
]

FastJpeg = Annotated[
    bool,
    typer.Option(
        "--fast-jpeg",
        help="Decode JPEGs at 1/2, 1/4 or 1/8 of their size if enough pixels remain for resizing: three times as fast "
        "for 12 megapixels, with slightly different pixels.",
    ),
]

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
CHECKPOINT_FILES = ["*.json", "*.safetensors", "README.md"]


def resolve_device(name: str | None) -> "torch.device":
    """The requested device, by default CUDA where available. Raises ValueError if it does not exist."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"there is no device {name!r}: choose cpu, cuda or cuda:<number>") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: choose cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        way_out = "use a smaller number" if count else "use --device cpu, or see what `vggt-int8 doctor` says"
        raise ValueError(f"there is no device {name!r}: torch {torch.__version__} sees {count} CUDA devices: {way_out}")
    return device


def resolve_dtype(name: str | None) -> "torch.dtype | None":
    """The dtype with that name; None stays None."""
    import torch

    if name is None:
        return None
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}; choose one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype


def load_model(
    model: str,
    *,
    recipe: Any = None,
    calibration: Any = None,
    seed: int = 0,
    backend: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
) -> "Int8Network":
    """Call `from_pretrained` of the model's family and set evaluation mode, with progress bars for download and
    calibration and a spinner for the rest.
    """
    target, compute = resolve_device(device), resolve_dtype(dtype)
    from vggt_int8 import load_recipe
    from vggt_int8.pretrained.model import int8_class_of

    if recipe is not None:
        recipe = load_recipe(recipe)
    fetch(model)
    how = "" if recipe is None else f" with recipe {recipe.name}"
    on_images: dict[str, Any] = {}
    with console.step(f"Loading {model}{how}") as progress:
        if calibration is not None:
            on_images = {"calibration": calibration, "calibration_seed": seed, "on_call": progress}
        loaded = int8_class_of(model).from_pretrained(
            model, recipe=recipe, backend=backend, device_map=str(target), dtype=compute, **on_images
        )
    ready: Int8Network = loaded.eval()
    return ready


def local_bytes(model: str) -> int:
    """Size of the weights of a folder or a file; 0 for a model that is not local."""
    path = Path(model).expanduser()
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files if file.is_file())


class InputSize(NamedTuple):
    """Size of the images that a model reads, in pixels."""

    size: int
    patch_size: int


def local_input_size(model: str) -> InputSize | None:
    """Input size of a local model, in a folder or in the Hub's cache, from its config.json; None if it cannot easily be
    determined.
    """
    path: Path | str | None = EMBEDDED_MODELS.get(model, Path(model).expanduser()) / "config.json"
    if _may_be_of_the_hub(model):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, "config.json")
        path = found if isinstance(found, str) else None
    try:
        config = json.loads(Path(path or "").read_text(encoding="utf-8"))
        size, patch_size = config["img_size"], config["patch_size"]
    except (OSError, ValueError, KeyError, TypeError):  # what is wrong with it is said when it is loaded
        return None
    whole = all(isinstance(side, int) and 0 < side < 2**16 for side in (size, patch_size))
    return InputSize(size, patch_size) if whole and size % patch_size == 0 else None


def _may_be_of_the_hub(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "~", "/")) and not Path(model).exists()


def fetch(model: str) -> None:
    """Download a Hub model's files to the cache, with progress bars. Does nothing for a folder.

    Raises `CheckpointError` for a name that exists neither locally nor on the Hub, or if the Hub does not respond.
    Other failures are left to `from_pretrained`, which checks the cache and gives a better message.
    """
    if model not in EMBEDDED_MODELS:
        from vggt_int8.saves.names import check_source

        check_source(os.path.expanduser(model), {})  # a Path would lose "./"
    if not _may_be_of_the_hub(model):
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from tqdm import tqdm

    with console.download_bars() as progress:

        class Bar(tqdm):
            """A transfer counted by huggingface_hub and drawn by rich."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # If there are several bars, draw the first that counts bytes: the others count files, or the same bytes
                # again.
                kwargs.pop("name", None)
                shown = kwargs.get("unit") == "B" and not any(task.visible for task in progress.tasks)
                self.task = progress.add_task(f"Downloading {model}", total=None, visible=shown)
                super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

            def display(self, *_: Any, **__: Any) -> None:
                progress.update(self.task, completed=self.n, total=self.total)

            def close(self) -> None:
                progress.update(self.task, visible=False)
                super().close()

        try:
            with naming(HF_HUB_CACHE):
                snapshot_download(model, allow_patterns=CHECKPOINT_FILES, tqdm_class=Bar)
        except (HfHubHTTPError, LocalEntryNotFoundError):
            return


def find_and_check(images: list[str], max_megapixels: float | None = None) -> list[Path]:
    """Find image files that can be opened. This is cheap, so it runs before a model is loaded. Warns about ignored
    files.
    """
    from vggt_int8.images import check_images, find_images

    paths = find_images(images)
    check_images(paths, max_pixels=in_pixels(max_megapixels))
    return paths


def load_images_for(
    model: "Int8Network", paths: list[Path], mode: str, max_megapixels: float | None = None
) -> "tuple[torch.Tensor, list[ImageTransform]]":
    """Images [S, 3, H, W] at the model's input size, and the transforms to original pixels."""
    from vggt_int8.images import read_images

    with console.step(f"Reading {console.count_images(len(paths))}", images=len(paths)) as progress:
        return read_images(
            paths,
            cast("FitMode", mode),  # an unknown one raises ValueError there
            model=model,
            max_pixels=in_pixels(max_megapixels),
            on_image=progress,
        )


def in_pixels(megapixels: float | None) -> int | None:
    """`--max-megapixels` as a number of pixels."""
    return None if megapixels is None else round(megapixels * 1e6)
