"""`vggt-int8 tune`: measure tile sizes of INT8 matrix products on this machine's GPU and write a table of the
fastest.
"""

from pathlib import Path
from typing import Annotated

import typer

from vggt_int8.cli import console, options
from vggt_int8.disk import check_place


def tune(
    out: Annotated[Path, typer.Option("--out", "-o", help="Table to write; VGGT_INT8_TILES names the one in use.")],
    seconds: Annotated[float, typer.Option(help="Total time limit.", **options.between(1))] = 180.0,
    as_json: options.Json = False,
) -> None:
    """Measure tile sizes of VGGT-1B's INT8 matrix products on this GPU, and write a table of the fastest."""
    check_place(out)
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"tiles are measured on a GPU, and torch {torch.__version__} sees no CUDA device here")
    from vggt_int8.kernels.cuda.tune import write_table

    rows = write_table(out.expanduser(), seconds, console.note if as_json else console.say)
    if as_json:
        console.document("tune", {"out": out, "rows": rows})
        return
    console.say(f"{out}: {len(rows)} sizes; VGGT_INT8_TILES={out} makes use of it")
