"""Rows of results -> Markdown for the README, between two marker comments, made anew each time."""

import math
from collections.abc import Sequence
from pathlib import Path

from vggt_int8.bench.records import Row, device_name
from vggt_int8.bench.source import describe_source
from vggt_int8.bench.variants import BASELINES
from vggt_int8.disk import check_place
from vggt_int8.files import write_whole

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
OURS = "int8_dynamic:native"
REFERENCES = ("reference", "bf16-autocast")  # the first that was measured counts
COMPILED = ("bf16-compiled-blocks", "bf16-compiled", "bf16-compiled-graph")  # the fastest counts
LIBRARIES = ("torch", "triton", "torchao", "bitsandbytes")

# Figures of this project's first sketch for an RTX 4090: (what, variant, frames, field, as the sketch had it).
SKETCH_CARD = "RTX 4090"
SKETCH = (
    ("fp32, 1 image", "fp32", 1, "ms", "50 ms"),
    ("INT8 dynamic, 1 image", OURS, 1, "ms", "40 ms"),
    ("fp32, 10 images", "fp32", 10, "ms", "450 ms"),
    ("INT8 dynamic, 10 images", OURS, 10, "ms", "360 ms"),
    ("fp32, GPU memory, 1 image", "fp32", 1, "peak_gib", "6 GB"),
    ("INT8 dynamic, GPU memory, 1 image", OURS, 1, "peak_gib", "2 GB"),
)
SKETCH_MODELS = ("random:vggt-1b", "facebook/VGGT-1B")
SKETCH_COMMAND = f"vggt-int8 bench --frames 1,10 --variants fp32,{OURS}"

Rows = dict[tuple[str, int], Row]  # (variant, frames): the row


def newest(rows: Sequence[Row]) -> Rows:
    """The last row of each variant and number of frames: baselines first, ours last.

    Raises ValueError if there are none, or if they are of several devices, numbers of CPU threads, versions of
    PyTorch, models, image sizes or memory limits: times of different kinds do not belong in one table.
    """
    if not rows:
        raise ValueError("the files hold no rows")
    kinds = {
        "devices": {device_name(row) for row in rows},
        "numbers of threads": {str(row["machine"].get("torch_threads")) for row in rows if not row["machine"]["gpu"]},
        "versions of PyTorch": {str(row["versions"].get("torch")) for row in rows},
        "models": {row["model"] for row in rows},
        "image sizes": {f"{row['size'][0]}x{row['size'][1]}" for row in rows},
        "memory limits": {str(row["memory_gb"]) for row in rows},
    }
    for what, values in kinds.items():
        if len(values) > 1:
            raise ValueError(f"the rows are of several {what} ({', '.join(sorted(values))}): make one table of each")
    last = {(row["variant"], row["frames"]): row for row in rows}
    return dict(sorted(last.items(), key=lambda item: _place(item[0][0])))


def _place(variant: str) -> tuple[bool, bool, int]:
    baseline = list(BASELINES).index(variant) if variant in BASELINES else len(BASELINES)
    return variant == OURS, variant.endswith(":native"), baseline


def markdown(rows: Sequence[Row], plot: str | None = None) -> str:
    """Everything between the markers. plot: where the figure is, as the README links to it."""
    table = newest(rows)
    figure = [] if plot is None else [f"![Time per frame and peak memory against the number of frames]({plot})"]
    parts = [_caption(table), _times(table), *_exceptions(table), *_gains(table), *figure, *_sketch(table)]
    return "\n\n".join(parts) + "\n"


def with_table(path: Path, text: str, name: str = "bench") -> str | None:
    """Content of a file with `text` between the markers of a table, `<!-- name:begin -->` and `<!-- name:end -->`, line
    ends as they are there; None if that changes nothing.

    Raises OSError if the file cannot be written, and ValueError unless each marker is there once, in order.
    """
    check_place(path)
    before, begin, end = path.read_bytes().decode("utf-8"), f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if before.count(begin) != 1 or before.count(end) != 1 or before.index(begin) > before.index(end):
        raise ValueError(f"{path} must hold the lines {begin} and {end}, once each and in this order")
    head, tail = before.split(begin)[0], before.split(end)[1]
    middle = f"{begin}\n{text}{end}"
    if "\r\n" in before:
        middle = middle.replace("\n", "\r\n")
    after = f"{head}{middle}{tail}"
    return None if after == before else after


def update_readme(path: Path, text: str, name: str = "bench") -> bool:
    """Put `text` between the markers of a file, whole or not at all; whether that changed anything.

    Raises OSError and ValueError as `with_table`.
    """
    after = with_table(path, text, name)
    if after is not None:
        write_whole(path, after.encode())
    return after is not None


def speed_up(table: Rows, variants: Sequence[str], frames: int) -> float | None:
    """How many times as fast ours is as the fastest of `variants`; None if either has no time."""
    times = [t for name in variants if (t := _value(table, name, frames, "ms")) is not None]
    ours = _value(table, OURS, frames, "ms")
    return None if ours is None or not times else min(times) / ours


def _value(table: Rows, variant: str, frames: int, field: str) -> float | None:
    """A number of a row; None unless the row exists and passed its check."""
    row = table.get((variant, frames))
    return row[field] if row is not None and row["status"] == "ok" else None


def _frames(table: Rows) -> list[int]:
    return sorted({frames for _, frames in table})


def _header(table: Rows) -> list[str]:
    frames = _frames(table)
    titles = [f"{n} frame{'s' * (n > 1)}" if n == frames[0] else str(n) for n in frames]
    return ["| | " + " | ".join(titles) + " |", "|---" * (len(frames) + 1) + "|"]


def _caption(table: Rows) -> str:
    """What was measured, on what, with which versions, when, and by which command."""
    row = next(iter(table.values()))
    height, width = row["size"]
    on_gpu, limit = row["machine"]["gpu"] is not None, row["memory_gb"]
    device = f"one {device_name(row)}" if on_gpu else f"{device_name(row)}, {row['machine']['torch_threads']} threads"
    device += "" if limit is None else f" limited to {limit:g} GB"
    dates = {row["date"][:10] for row in table.values()}
    facts = [
        f"Whole forward pass (cameras, depth, points) at {height} × {width} on {device}",
        describe_source(row["model"]),
        *(f"{name} {' and '.join(found)}" for name in LIBRARIES if (found := _versions(table, name))),
        " to ".join(dict.fromkeys((min(dates), max(dates)))),
        " and ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in table.values())),
    ]
    unit = "Milliseconds (peak GiB of GPU memory, weights included)" if on_gpu else "Milliseconds"
    return f"{', '.join(facts)}. {unit}; the fastest of each column is bold."


def _versions(table: Rows, library: str) -> list[str]:
    versions = (row["versions"].get(library) for row in table.values())
    return list(dict.fromkeys(version for version in versions if version))


def _times(table: Rows) -> str:
    frames, lines = _frames(table), _header(table)
    fastest = {
        n: min((row["ms"] for (_, s), row in table.items() if s == n and row["status"] == "ok"), default=None)
        for n in frames
    }
    for variant in dict.fromkeys(name for name, _ in table):
        cells = []
        for n in frames:
            row = table.get((variant, n))
            if row is None or row["status"] != "ok":
                cells.append("–" if row is None else row["status"])
                continue
            time = f"**{_ms(row['ms'])}**" if row["ms"] == fastest[n] else _ms(row["ms"])
            cells.append(time + ("" if row["peak_gib"] is None else f" ({row['peak_gib']:.2f})"))
        title = next(row["title"] for (name, _), row in table.items() if name == variant)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ms(ms: float) -> str:
    return f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def _exceptions(table: Rows) -> list[str]:
    """What the table's cells leave unsaid: rows without a time, and what rows were compared with."""
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for row in table.values():
        if row["status"] != "ok":
            reasons.setdefault((row["title"], row["status"], row["reason"]), []).append(row["frames"])
    lines = [
        f"- {title}, {', '.join(map(str, frames))} frames: {status} ({reason})"
        for (title, status, reason), frames in reasons.items()
    ]
    for by, text in (("fp16", "the plain network in fp16"), ("", "nothing; only that they are finite")):
        frames = sorted({row["frames"] for row in table.values() if row["compared_with"] == by and row["runs"]})
        if frames:
            lines.append(f"- outputs at {', '.join(map(str, frames))} frames were compared with {text}, not with fp32")
    for n in _frames(table):
        runs = {row["run"] for (_, frames), row in table.items() if frames == n}
        if len(runs) > 1:
            lines.append(f"- {n} frames: the rows are of {len(runs)} runs, not of one")
    return ["\n".join(lines)] if lines else []


def _worst(errors: dict[str, dict[str, float | None]]) -> float | None:
    """The largest relative error; NaN, which the file holds as null, is larger than any."""
    values = [math.nan if error["relative"] is None else error["relative"] for error in errors.values()]
    return max(values, key=lambda value: math.inf if math.isnan(value) else value, default=None)


def _gains(table: Rows) -> list[str]:
    frames = _frames(table)
    if all(_value(table, OURS, n, "ms") is None for n in frames):
        return []
    reference = next((name for name in REFERENCES if any(name == v for v, _ in table)), None)
    share = [_value(table, OURS, n, "share") for n in frames]
    errors = [table[OURS, n]["errors"] if (OURS, n) in table else {} for n in frames]
    worst = [_worst(error) for error in errors]
    rows = {
        "times as fast as the fastest compiled bf16": [speed_up(table, COMPILED, n) for n in frames],
        "share of what this machine's measured rates allow": share,
        "largest relative error of an output": worst,
    }
    if reference is not None:
        title = next(row["title"] for (name, _), row in table.items() if name == reference)
        rows = {f"times as fast as {title}": [speed_up(table, [reference], n) for n in frames], **rows}
    lines = [f"`{OURS}`:", "", *_header(table)]
    for name, values in rows.items():
        form = "{:.2f} ×" if name.startswith("times") else "{:.0%}" if name.startswith("share") else "{:.2%}"
        if any(value is not None for value in values):
            cells = [_cell(value, form) for value in values]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return ["\n".join(lines)]


def _cell(value: float | None, form: str) -> str:
    if value is None:
        return "–"
    return "not finite" if math.isnan(value) else form.format(value)


def _sketch(table: Rows) -> list[str]:
    """The first sketch's figures beside what was measured, for VGGT-1B on a GPU. Nobody measured the former."""
    row = next(iter(table.values()))
    if row["machine"]["gpu"] is None or row["model"] not in SKETCH_MODELS:
        return []
    cells = []
    for what, variant, frames, field, sketched in SKETCH:
        value = _value(table, variant, frames, field)
        measured = "–" if value is None else f"{_ms(value)} ms" if field == "ms" else f"{value * 2**30 / 1e9:.1f} GB"
        cells.append((what, sketched, measured))
    if all(measured == "–" for *_, measured in cells):
        return []
    title = f"| | early sketch, {SKETCH_CARD}, never measured | measured, {device_name(row)} |"
    body = [f"| {what} | {sketched} | {measured} |" for what, sketched, measured in cells]
    text = f"What settles it on your card: `{SKETCH_COMMAND}`."
    return ["\n".join([title, "|---|---|---|", *body]), text]
