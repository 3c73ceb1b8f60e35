"""Results as JSON lines: one line per row, appended as soon as it is measured, complete by itself.

A row says what ran (`variant`, `frames`, `size`, `model`), where (`machine`, `versions`), when and how (`date`, `run`,
`command`), and the result: `status` is "ok", "wrong" (outputs too far from the expected ones: no time) or "failed"
(`reason` says why). `FIELDS` is the whole schema.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any

from vggt_int8.files import append_json_line
from vggt_int8.listing import first_few
from vggt_int8.plain_data import finite, is_integer, shown

FORMAT = 1
Row = dict[str, Any]
NUMBER = (int, float)
# Of any number, and from below of what is drawn on logarithmic axes (ms, peak_gib): beyond is no measurement.
LARGEST, SMALLEST = 1e15, 1e-9

FIELDS: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "variant": (str,),
    "title": (str,),
    "frames": (int,),
    "size": (list,),  # pixels: height, width
    "model": (str,),
    "memory_gb": (*NUMBER, NoneType),  # what the process was allowed to take, 1e9 bytes; None: all
    "status": (str,),
    "reason": (str,),
    "compared_with": (str,),  # "fp32"; "fp16" where fp32 takes too long; "" if nothing was at hand
    "errors": (dict,),  # {output: {"relative": error norm / norm, "max_abs": largest absolute error}}
    "ms": (*NUMBER, NoneType),  # median
    "ms_low": (*NUMBER, NoneType),  # 20th percentile
    "ms_high": (*NUMBER, NoneType),  # 80th percentile
    "runs": (int,),
    "first_s": (*NUMBER, NoneType),  # the first call at this size, compilation included
    "peak_gib": (*NUMBER, NoneType),  # of warm calls, weights and images included; None on a CPU
    "reserved_gib": (*NUMBER, NoneType),  # the same as PyTorch holds it, caches and CUDA graphs included
    "weights_gib": (*NUMBER, NoneType),
    "tflop": (*NUMBER, NoneType),
    "floor_ms": (*NUMBER, NoneType),  # see `cost.Ceilings.floor_ms`
    "share": (*NUMBER, NoneType),  # floor_ms / ms
    "ceilings": (dict,),
    "mode": (str,),
    "machine": (dict,),
    "versions": (dict,),
    "date": (str,),
    "run": (str,),  # when the run started that this row belongs to
    "command": (str,),
}
STATUS = ("ok", "wrong", "failed")
IDENTITY = ("variant", "frames", "size", "model", "memory_gb")  # what makes two rows the same measurement


def check_row(row: Row) -> None:
    """Raise ValueError, naming the field, unless the row has exactly the fields of the schema."""
    if row.get("format") != FORMAT:
        raise ValueError(f"format is {shown(row.get('format'))}, this version reads {FORMAT}: measure again")
    if row.keys() != FIELDS.keys():
        missing, unknown = sorted(FIELDS - row.keys()), sorted(row.keys() - FIELDS)
        raise ValueError(f"fields missing: {missing}, unknown: {first_few(unknown, spell=shown) or 'none'}")
    for name, types in FIELDS.items():
        if not isinstance(row[name], types) or isinstance(row[name], bool):
            raise ValueError(f"{name} is {shown(row[name])}")
        if isinstance(row[name], NUMBER) and not abs(row[name]) < LARGEST:  # NaN is not less, either
            raise ValueError(f"{name} is {shown(row[name])}, not a number below {LARGEST:g}")
    if row["status"] not in STATUS:
        raise ValueError(f"status is {shown(row['status'])}, not one of {', '.join(STATUS)}")
    if (row["status"] == "ok") != (row["ms"] is not None):
        raise ValueError(f"a row with status {shown(row['status'])} has the time {shown(row['ms'])}")
    for name, what in (("ms", "time"), ("peak_gib", "size")):
        if row[name] is not None and row[name] < SMALLEST:
            raise ValueError(f"{name} is {shown(row[name])}, not a {what}")
    if row["frames"] < 1:
        raise ValueError(f"frames is {shown(row['frames'])}, not a number of frames")
    if len(row["size"]) != 2 or not all(is_integer(n) and n > 0 for n in row["size"]):
        raise ValueError(f"size is {shown(row['size'])}, not [height, width]")
    _check_machine(row["machine"])
    if not all(isinstance(value, str | None) for value in row["versions"].values()):
        raise ValueError(f"versions is {shown(row['versions'])}, not {{package: version or null}}")
    if wrong := {name: error for name, error in row["errors"].items() if not _is_error(error)}:
        raise ValueError(f"errors is {shown(wrong)}, not {{output: relative and max_abs}}, numbers from 0 on or null")


def _check_machine(machine: dict[str, Any]) -> None:
    if not {"gpu", "cpu"} <= machine.keys():
        raise ValueError(f"machine is {shown(machine)}, without gpu and cpu")
    gpu = machine["gpu"]
    if gpu is not None and not (isinstance(gpu, dict) and isinstance(gpu.get("name"), str)):
        raise ValueError(f"machine's gpu is {shown(gpu)}, neither null nor an object with a name")
    if gpu is None and not is_integer(machine.get("torch_threads")):
        found = shown(machine)
        raise ValueError(f"machine is {found}, without gpu and without torch_threads, the number of CPU threads")


def _is_error(error: Any) -> bool:
    """Of an output. NaN and infinity are errors, too: of a row whose outputs are wrong."""
    if not isinstance(error, dict) or error.keys() != {"relative", "max_abs"}:
        return False
    sizes = (value for value in error.values() if value is not None)
    return all(isinstance(size, NUMBER) and not isinstance(size, bool) and not size < 0 for size in sizes)


def append_row(path: Path, row: Row) -> None:
    """Add one line to a file, which is made if need be."""
    row = finite(row)
    check_row(row)
    append_json_line(path, row)


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All rows of the files, in order. Raises ValueError naming the file and the line."""
    rows = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}") from error
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                check_row(row if isinstance(row, dict) else {})
            except (ValueError, RecursionError) as error:
                reason = f"{path}, line {number}, is no row of a benchmark: {error}"
                raise ValueError(f"{reason}. If a run was killed while it wrote, delete that line") from error
            rows.append(row)
    return rows


def identity(row: Row) -> tuple[Any, ...]:
    threads = None if row["machine"]["gpu"] else row["machine"].get("torch_threads")
    return (*(str(row[name]) for name in IDENTITY), device_name(row), threads)


def device_name(row: Row) -> str:
    """The GPU, or the CPU where that ran it."""
    gpu = row["machine"]["gpu"]
    return str(gpu["name"] if gpu else row["machine"]["cpu"])
