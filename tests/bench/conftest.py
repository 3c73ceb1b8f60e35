"""A tiny network with random weights on the CPU, and rows of results as a GPU would give them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vggt_int8.bench import sweep
from vggt_int8.bench.cost import Ceilings, WorkCounter
from vggt_int8.bench.records import FORMAT, Row
from vggt_int8.bench.source import Source, load_source
from vggt_int8.bench.sweep import Settings, Sweep
from vggt_int8.bench.variants import find_variants

CPU = torch.device("cpu")
TINY = "random:" + str(Path(__file__).parent.parent / "data" / "parity" / "tiny_vggt_config.json")


@pytest.fixture(scope="session")
def tiny_source() -> Source:
    return load_source(TINY, CPU)


@pytest.fixture(scope="session")
def tiny_work(tiny_source: Source) -> WorkCounter:
    return WorkCounter(tiny_source.config, (42, 56))


@pytest.fixture
def sweep_rows(
    tiny_source: Source, tiny_work: WorkCounter, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Row]]:
    """`sweep_rows("fp32", "bf16")` measures the first call of these on 1 and 2 frames; options are those of `Settings`.

    What this machine can do, and the work of other image sizes, matter to no test here and are not measured anew.
    """
    monkeypatch.setattr(sweep, "measure_ceilings", lambda device: Ceilings("float32", 0.1, 0.4, 0.1, 10.0))
    monkeypatch.setattr(sweep, "WorkCounter", lambda config, size: tiny_work)

    def run(*variants: Any, done: tuple[Any, ...] = (), **options: Any) -> list[Row]:
        found = [v if not isinstance(v, str) else find_variants([v])[0] for v in variants]
        settings = {"frames": (1, 2), "size": (42, 56), "seconds": 0, "variants": tuple(found), **options}
        return list(Sweep(tiny_source, CPU, Settings(**settings)).rows(done))

    return run


@pytest.fixture
def make_row() -> Callable[..., Row]:
    """A row as from an H200: `make_row("fp32", 10, 901.0, status="ok")`."""

    def make(variant: str, frames: int, ms: float | None, peak_gib: float | None = 2.0, **fields: Any) -> Row:
        ok = ms is not None
        row = {
            "format": FORMAT,
            "variant": variant,
            "title": variant,
            "frames": frames,
            "size": [392, 518],
            "model": "random:vggt-1b",
            "memory_gb": None,
            "status": "ok" if ok else "failed",
            "reason": "" if ok else "out of memory",
            "compared_with": "fp32",
            "errors": {"depth": {"relative": 0.0123, "max_abs": 0.5}},
            "ms": ms,
            "ms_low": ms,
            "ms_high": ms,
            "runs": 5 if ok else 0,
            "first_s": 1.0,
            "peak_gib": peak_gib,
            "reserved_gib": peak_gib,
            "weights_gib": 1.2,
            "tflop": 2.6,
            "floor_ms": 5.0,
            "share": 5.0 / ms if ms else None,
            "ceilings": {},
            "mode": "",
            "machine": {"gpu": {"name": "NVIDIA H200"}, "cpu": "some CPU", "torch_threads": 16},
            "versions": {"torch": "2.11.0", "torchao": "0.18.0", "bitsandbytes": None},
            "date": "2026-11-24T10:00:00+00:00",
            "run": "2026-11-24T09:59:00+00:00",
            "command": "vggt-int8 bench",
        }
        return row | fields

    return make
