"""Shared by all tests: GPU tests only where there is a GPU, their results as a file, the small golden network.

On a GPU machine: `pytest -m gpu --results benchmarks/results/h200/gpu_tests.json`.
"""

import datetime
import gc
import json
import os
import re
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from vggt_int8 import VGGTInt8

# The package is imported where it is used: the process that shares a suite out waits for this file, and needs no more.

PARITY = Path(__file__).parent / "data" / "parity"

# One thread, here and in every process that a test starts: the tests' tensors are too small to share out, and threads
# that wait for each other make the suite ten times slower as soon as something else runs on the machine. Another number
# shows that no bound rests on the order in which one thread adds.
THREADS = int(os.environ.get("VGGT_INT8_TEST_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
torch.set_num_threads(THREADS)

# transformers compiles a regular expression for each tensor of a checkpoint it loads. Python keeps 512 of them, but the
# golden network has 741 tensors: every load in every test would compile them anew.
re._MAXCACHE = 1 << 14  # type: ignore[attr-defined]


MOST_PROCESSES = 4  # of plain `pytest`; each takes a gigabyte
# What is left out unless asked for, and how it is.
ASKED_FOR = ("exhaustive", "slow")
HOW_TO_RUN = {
    "gpu": "on a machine with CUDA: pytest -m gpu",
    "slow": "with them: pytest -m 'slow or not slow'",
    "exhaustive": "them alone: pytest -m exhaustive",
}
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out `gpu` tests without CUDA, which are for another machine, and others unless `-m` speaks of their marker.

    They are counted as deselected, not as skipped, and the summary says how many of which kind.
    """
    without = [] if torch.cuda.is_available() else ["gpu"]
    without += [mark for mark in ASKED_FOR if mark not in config.getoption("markexpr")]
    kept, left_out = [], []
    for item in items:
        mark = next((mark for mark in without if item.get_closest_marker(mark)), None)
        (left_out if mark else kept).append(item)
        config.stash[LEFT_OUT].update([mark] if mark else [])
    config.hook.pytest_deselected(items=left_out)
    # Files with slow tests first: at the end of a shared out suite, nothing long keeps one process alone.
    long = {item.path for item in kept if item.get_closest_marker("slow")}
    items[:] = sorted(kept, key=lambda item: item.path not in long)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite, asked for by plain `pytest`, is shared out over the cores where pytest-xdist is installed.

    `-n 0` runs it in one process, and so do named files, debuggers, what only collects, and a GPU, which is one.
    """
    if hasattr(config, "workerinput"):  # in one of those processes
        return
    option = config.option
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not option.collectonly
    if (
        whole
        and not torch.cuda.is_available()
        and getattr(option, "numprocesses", 0) is None
        and option.dist == "no"
        and not option.usepdb
    ):
        option.numprocesses, option.dist = min(len(os.sched_getaffinity(0)), MOST_PROCESSES), "loadscope"
        option.loadscopereorder = False  # the order of `pytest_collection_modifyitems`


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of pytest-xdist
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every process of pytest-xdist has collected the same, and left out the same."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", {})
    node.config.stash[LEFT_OUT] = Counter(left_out)


def pytest_collection_finish() -> None:
    """What is there now stays to the end: garbage collection need not look through it, and less often through the rest.

    The modules and tests are a million objects, of which a collection of all found nothing to free.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, help="write outcomes, machine and versions to this JSON file")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and write `--results`: GPU tests run by hand, so it is kept what they were seen on."""
    for mark, count in config.stash[LEFT_OUT].items():
        terminalreporter.write_line(f"left out: {count} {mark} ({HOW_TO_RUN[mark]})")
    path = config.getoption("--results")
    if path is None:
        return
    from vggt_int8.export.report import describe_machine, installed_versions
    from vggt_int8.files import write_json

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stats = terminalreporter.stats
    results = {
        "arguments": [str(argument) for argument in config.invocation_params.args],
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(device),
        "versions": installed_versions(),
        "counts": {kind: len(stats.get(kind, [])) for kind in ("passed", "failed", "error", "skipped")},
        "failed": [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])],
        "skipped": sorted({str(report.longrepr[2]) for report in stats.get("skipped", [])}),
    }
    write_json(path, results)


@pytest.fixture(scope="session")
def tiny_sizes() -> dict[str, object]:
    """Keyword arguments of `VGGTConfig` for the golden network."""
    return json.loads((PARITY / "tiny_vggt_config.json").read_text())


@pytest.fixture(scope="session")
def tiny_weights() -> dict[str, Tensor]:
    return load_file(PARITY / "tiny_vggt.safetensors")


@pytest.fixture(scope="session")
def tiny_images() -> Tensor:
    """[2, 3, 42, 56]: two different frames."""
    return torch.rand(2, 3, 42, 56, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def tiny_points() -> Tensor:
    return torch.tensor([[3.0, 4.0], [30.0, 20.0], [55.0, 41.0]])


def _save(folder: Path, sizes: dict[str, object], weights: dict[str, Tensor]) -> Path:
    """A network of floats as a checkpoint."""
    _maker(sizes, weights)().save_pretrained(folder)
    return folder


def _save_int8(folder: Path, source: Path) -> Path:
    """A checkpoint quantized by recipe int8_dynamic."""
    from vggt_int8 import VGGTInt8

    VGGTInt8.from_pretrained(source, recipe="int8_dynamic").save_pretrained(folder)
    return folder


def _maker(sizes: dict[str, object], weights: dict[str, Tensor]) -> "Callable[[], VGGTInt8]":
    """Builds a network of these sizes and weights in fp32, not quantized."""
    from vggt_int8 import VGGTConfig, VGGTInt8
    from vggt_int8.model.unfilled import unfilled

    def make() -> VGGTInt8:
        model = unfilled(VGGTInt8, VGGTConfig(**sizes)).eval()
        model.load_state_dict({name: x.to(torch.float32, copy=True) for name, x in weights.items()}, assign=True)
        return model

    return make


@pytest.fixture
def make_tiny(tiny_sizes: dict[str, object], tiny_weights: dict[str, Tensor]) -> "Callable[[], VGGTInt8]":
    """Builds the golden network in fp32, not quantized."""
    return _maker(tiny_sizes, tiny_weights)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_sizes: dict[str, object], tiny_weights: dict[str, Tensor]
) -> Path:
    """The golden network as an fp32 checkpoint. Read only."""
    return _save(tmp_path_factory.mktemp("tiny") / "fp32", tiny_sizes, tiny_weights)


@pytest.fixture(scope="session")
def int8_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The golden network under recipe int8_dynamic. Read only."""
    return _save_int8(tmp_path_factory.mktemp("tiny") / "int8", tiny_checkpoint)


@pytest.fixture(scope="session")
def bare_sizes(tiny_sizes: dict[str, object]) -> dict[str, object]:
    """The golden network without point and track head and with half of its blocks, its weights as they are: 181 of its
    741 tensors, and three to four times as fast to load.

    For what has nothing to do with these heads, or with what the numbers mean.
    """
    fewer = {"encoder_depth": 1, "depth": 2, "dpt_layers": [0, 1, 0, 1], "camera_depth": 1}
    return {**tiny_sizes, **fewer, "enable_point": False, "enable_track": False}


@pytest.fixture(scope="session")
def bare_weights(bare_sizes: dict[str, object], tiny_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    from vggt_int8 import VGGT, VGGTConfig
    from vggt_int8.model.unfilled import unfilled

    return {name: tiny_weights[name] for name in unfilled(VGGT, VGGTConfig(**bare_sizes)).state_dict()}


@pytest.fixture
def make_bare(bare_sizes: dict[str, object], bare_weights: dict[str, Tensor]) -> "Callable[[], VGGTInt8]":
    """Builds the bare network in fp32, not quantized."""
    return _maker(bare_sizes, bare_weights)


@pytest.fixture(scope="session")
def bare_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, bare_sizes: dict[str, object], bare_weights: dict[str, Tensor]
) -> Path:
    """The bare network as an fp32 checkpoint. Read only."""
    return _save(tmp_path_factory.mktemp("bare") / "fp32", bare_sizes, bare_weights)


@pytest.fixture(scope="session")
def bare_int8(tmp_path_factory: pytest.TempPathFactory, bare_checkpoint: Path) -> Path:
    """The bare network under recipe int8_dynamic. Read only."""
    return _save_int8(tmp_path_factory.mktemp("bare") / "int8", bare_checkpoint)


@pytest.fixture
def no_image_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow without the plugins that may be installed here, and that our code uses where they are."""
    for name in ("HEIF", "JXL"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    monkeypatch.setattr("vggt_int8.images.formats._PLUGINS", {})


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of more than 64 KiB may be written: the nearest to a full disk that needs no rights."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
