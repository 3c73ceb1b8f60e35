"""`vggt-int8 push`: upload a checkpoint to the Hugging Face Hub, with a model card of measured results."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vggt_int8.cli import console, options

if TYPE_CHECKING:
    from vggt_int8.pretrained.upload import Upload
    from vggt_int8.saves.license import License

SCORES = ("scores.json", "scores/scores.json")
BENCH = ("bench.jsonl", "vggt-int8-bench.jsonl")


def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint written by `quantize` or `save_pretrained`.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, such as me/VGGT-1B-quantized.w8a8.")],
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of the original model, for the card; by default as recorded in the checkpoint."),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights, as an id of the Hub (cc-by-nc-4.0, other, …); by default as stated in the "
            "files. Quantizing does not change it.",
            show_default=False,
        ),
    ] = None,
    license_name: Annotated[
        str | None, typer.Option(help="With --license other: its name.", show_default=False)
    ] = None,
    license_link: Annotated[
        str | None, typer.Option(help="With --license other: URL of its text.", show_default=False)
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            help="scores.json of `eval`, or its folder; by default scores.json or scores/ in the checkpoint's folder.",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        Path | None,
        typer.Option(help="Rows of `bench`; by default bench.jsonl in the checkpoint's folder.", show_default=False),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository public; by default it is private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to; a new branch starts at main.", show_default=False)
    ] = None,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Additional tags for the card; repeatable.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and card without sending or requesting anything.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Upload a checkpoint with its model card, in one commit. Sign in first: `hf auth login`, or set HF_TOKEN."""
    from vggt_int8.pretrained.upload import check_repository, prepare, send

    check_repository(repo)
    folder = folder.expanduser()
    document, rows = _scores(folder, scores), _rows(folder, bench)
    stated = _licence(license, license_name, license_link)
    upload = prepare(folder, repo, base_model, _evidence(folder, document, rows), tag or (), stated)
    if not upload.licensed:
        raise ValueError(
            f"nothing in {folder} says which licence its weights are under: give --license, as the Hub spells it "
            "(with --license other also --license-name and --license-link), or --base-model"
        )
    if not upload.based:
        console.note("The card names no base model: give --base-model")
    address = None
    if not dry_run:
        with console.step(f"Uploading to {repo}"):
            address = send(upload, repo, private=not public, revision=revision, pull_request=pull_request)
    content = {"repository": repo, "files": upload.sizes(), "card": upload.card, "commit": address}
    if as_json:
        console.document("push", content)
    elif dry_run:
        console.show(_table(upload))
        console.say("")
        console.say(upload.card)
    else:
        console.say(f"{address}")


def _licence(license: str | None, name: str | None, link: str | None) -> "License | None":
    """The licence of the options. Raises ValueError for a licence without a name or link."""
    from vggt_int8.saves.license import OTHER, License

    if license is None and (name or link):
        raise ValueError("--license-name and --license-link belong to --license other")
    if (license == OTHER) != bool(name and link) or (license != OTHER and (name or link)):
        raise ValueError(
            f"--license other needs --license-name and --license-link, which no other takes; got --license {license}"
        )
    return None if license is None else License(license, name, link)


def _evidence(folder: Path, document: dict[str, Any] | None, rows: list[dict[str, Any]]) -> "list[tuple[str, str]]":
    """Title and text of the sections. Raises ValueError for scores of different weights."""
    from vggt_int8 import evidence
    from vggt_int8.export.repeat import identify_model

    sections, found = [], []
    if document is not None:
        row = evidence.row_of(document, identify_model(str(folder)))
        if row is None:
            raise ValueError(
                f"the scores do not speak of {folder}: run `vggt-int8 eval BASE {folder} -o SCORES` first, or leave "
                "--scores out"
            )
        if row is not document["rows"][0]:
            sections.append(("Accuracy", evidence.accuracy(document, row)))
    if rows:
        found = evidence.of_recipe(rows, _recipe(folder))
        if found:
            sections.append(("Time and memory", evidence.speed(found)))
    words = evidence.not_measured(document if sections and sections[0][0] == "Accuracy" else None, found)
    return [*sections, ("Not measured", "\n".join(f"- {word}" for word in words))]


def _recipe(folder: Path) -> str:
    """Recipe name of a checkpoint; "" for floating point."""
    from vggt_int8.pretrained.source import load_config, stored_quantization

    stored = stored_quantization(load_config(str(folder), {}), str(folder))
    return "" if stored is None else stored.parsed().name


def _scores(folder: Path, given: Path | None) -> dict[str, Any] | None:
    """Contents of scores.json; None if the file does not exist and none was given."""
    path = _found(folder, given, SCORES, "scores.json")
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["rows"][0]["scores"], document["data"]["kind"], document["machine"]["cpu"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is no scores.json of `vggt-int8 eval`: {error}") from error
    return dict(document)


def _rows(folder: Path, given: Path | None) -> list[dict[str, Any]]:
    from vggt_int8.bench.records import read_rows

    path = _found(folder, given, BENCH, "")
    return [] if path is None else read_rows([path])


def _found(folder: Path, given: Path | None, names: tuple[str, ...], inside: str) -> Path | None:
    """The given file, or one of the default names. Raises FileNotFoundError if the given file does not exist."""
    if given is None:
        return next((folder / name for name in names if (folder / name).is_file()), None)
    path = given.expanduser()
    path = path / inside if inside and path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    return path


def _table(upload: "Upload") -> Table:
    table = Table("file", "size", box=None, pad_edge=False)
    for name, size in upload.sizes().items():
        table.add_row(name, console.megabytes(size))
    return table
