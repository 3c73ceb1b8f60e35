"""Ranks that share out frames, as processes over gloo: `python -m tests.shards.ranks FOLDER`.

All cases are in one start, for that takes longer than they do: packages are imported once, then four ranks are forked.
Those of a case with fewer ranks are the first ones. Each writes what it found to FOLDER/RANK.json, for
`test_shards.py`; the last one ends within a call, as if it were killed.
"""

import copy
import itertools
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from tests.codes import apart_by_codes
from vggt_int8 import VGGTConfig, VGGTInt8, VGGTOmegaConfig, VGGTOmegaInt8, quantize
from vggt_int8.difference import relative_error
from vggt_int8.pretrained.int8_network import Int8Network
from vggt_int8.runtime import memory, runtime
from vggt_int8.runtime.memory import PLANS, Plan
from vggt_int8.shards import FrameShard, share_out

DATA = Path(__file__).parents[1] / "data"
RANKS = 4
POINTS = torch.tensor([[3.0, 4.0], [13.0, 9.0]])
HEADS = {"heads": ("camera", "depth")}
KEYFRAMES = {"global_attention": "keyframes", "keyframes": 3}
BY_LAYER = {"global_attention": ["frames", "keyframes", "exact", "keyframes"], "keyframes": 2}


def images_of(batch: int, frames: int, side: tuple[int, int] = (42, 56), seed: int = 0) -> Tensor:
    return torch.rand(batch, frames, 3, *side, generator=torch.Generator().manual_seed(frames + seed))


def vggt() -> VGGTInt8:
    sizes = json.loads((DATA / "parity" / "tiny_vggt_config.json").read_text())
    model = VGGTInt8(VGGTConfig(**sizes)).eval().requires_grad_(False)
    model.load_state_dict(load_file(DATA / "parity" / "tiny_vggt.safetensors"))
    return model


def omega() -> VGGTOmegaInt8:
    sizes = json.loads((DATA / "parity_omega" / "tiny_omega_config.json").read_text())
    model = VGGTOmegaInt8(VGGTOmegaConfig(**sizes)).eval().requires_grad_(False)
    model.load_state_dict(load_file(DATA / "parity_omega" / "tiny_omega.safetensors"))
    return model


class Case(NamedTuple):
    """A call that each number of `counts` ranks makes together, on a network of this name."""

    name: str
    network: str
    images: Tensor
    counts: tuple[int, ...]
    asked: dict[str, Any]


def cases() -> list[Case]:
    tracks = {"query_points": POINTS.expand(2, 2, 2), "descriptors": True}
    return [
        Case("vggt", "vggt", images_of(2, 5), (2, 4), tracks),
        Case("vggt, few frames", "vggt", images_of(1, 2), (4,), {"query_points": POINTS}),
        Case("vggt, key frames", "vggt", images_of(1, 7), (3,), HEADS | KEYFRAMES),
        Case("vggt, by layer", "vggt", images_of(2, 4), (3,), HEADS | BY_LAYER),
        Case("omega", "omega", images_of(2, 5, (32, 48)), (3,), {}),
        Case("omega, few frames", "omega", images_of(1, 2, (32, 48)), (3,), {}),
        Case("omega, key frames", "omega", images_of(1, 5, (32, 48)), (4,), KEYFRAMES),
        Case("int8", "int8", images_of(1, 5), (3,), HEADS),
    ]


class Alone:
    """What one process gives, computed once before there are ranks."""

    def __init__(self, models: dict[str, Int8Network]) -> None:
        self.equal = {}
        for case in cases():
            model = models[case.network]
            for mode in ("off", "on"):
                model.set_runtime(mode)
                self.equal[case.name, mode] = model(case.images, **case.asked)
        self.fused = {frames: models["vggt"](images_of(1, frames)) for frames in (2, 5, 6)}
        exact, int8 = models["vggt"], models["int8"]
        scenes = [images_of(1, 5, seed=i) for i in range(4)]
        self.codes = apart_by_codes(lambda x: exact(x, **HEADS), lambda x: int8(x, **HEADS), scenes)


class Rank:
    """One rank and what it finds, by the name of a case."""

    def __init__(self, rank: int, store: Any, models: dict[str, Int8Network], alone: Alone) -> None:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=120))
        self.rank, self.found = rank, {"equal": {}}
        self.fits = 0  # the place of the largest plan that there is room for
        self.groups = {count: dist.new_group(list(range(count))) for count in (2, 3)} | {4: None}
        self.models, self.vggt, self.alone = models, models["vggt"], alone

    def equality(self) -> None:
        """Errors against one process, of the plain and the fused network."""
        self.found["codes"] = self.alone.codes
        for case in cases():
            for mode, count in itertools.product(("off", "on"), case.counts):
                if self.rank < count:
                    self._equal(case, mode, count)

    def _equal(self, case: Case, mode: str, count: int) -> None:
        model, want = self.models[case.network], self.alone.equal[case.name, mode]
        model.set_runtime(mode)
        model.set_context_parallel("all", self.groups[count])
        got = model(case.images, **case.asked)
        report = model.runtime_report()
        model.set_context_parallel("off")
        assert got.keys() == want.keys(), (got.keys(), want.keys())
        self.found["equal"][f"{case.name}, {mode}, {count} ranks"] = {
            field: relative_error(got[field], want[field]) for field in want
        }
        shards = share_out(case.images.shape[1], count)
        assert report.shards == (shards if shards[self.rank] else report.shards), report

    def raised(self, name: str, call: Callable[[], Any]) -> None:
        try:
            call()
            self.found[name] = "nothing"
        except Exception as error:
            self.found[name] = f"{type(error).__name__}: {error}"

    def outputs(self) -> None:
        """What is returned where."""
        model, images, whole = self.vggt, images_of(1, 6), self.alone.fused[6]
        for outputs in ("first", "own"):
            model.set_context_parallel(outputs)
            got = model(images)
            first, count = ((0, 2), (2, 2), (4, 1), (5, 1))[self.rank]
            mine = slice(0, 6) if (outputs, self.rank) == ("first", 0) else slice(first, first + count)
            self.found[f"outputs {outputs}"] = all(
                got[name].shape == whole[name][:, mine].shape and relative_error(got[name], whole[name][:, mine]) < 2e-5
                for name in whole
            )
        few = model(images[:, :2])  # "own": two ranks have no frame
        self.found["frames of its own"] = [len(few[name][0]) for name in ("depth", "extrinsic", "images")]
        model.set_context_parallel("all")
        whole, again = model(images), model(images)
        self.found["same again"] = all(torch.equal(again[name], whole[name]) for name in whole)

    def failures(self) -> None:
        """One rank fails: all raise, and can go on."""
        model, images = self.vggt, images_of(1, 6)
        model.set_runtime("off")
        bad = images.clone()
        bad[:, 2, :, 0, 0] = float("nan")  # a frame of rank 1
        self.raised("nan", lambda: model(bad))
        hook = model.aggregator.global_blocks[1].register_forward_pre_hook(self._out_of_memory)
        self.raised("within a call", lambda: model(images, heads=("camera",)))
        hook.remove()
        self.raised("other images", lambda: model(images_of(1, 6 + (self.rank == 3))))
        self.raised("other heads", lambda: model(images, heads=("camera",) if self.rank else ("depth",)))
        self.raised("bad arguments", lambda: model(images, heads=("nose",) if self.rank == 1 else None))
        self.raised("one in training", lambda: model.train(self.rank == 1)(images))
        model.eval()
        self.raised("after failures", lambda: model(images))
        copied = copy.deepcopy(model)
        self.raised("a copy is alone", lambda: copied(images) if self.rank == 2 else None)
        other = copy.deepcopy(self.vggt)
        if self.rank == 1:
            other.aggregator.global_blocks[1].mlp.fc2.weight[0, 0] += 1
        self.raised("other weights", lambda: other.set_context_parallel("all"))
        self.raised("gradients", lambda: model.requires_grad_(True)(images))
        model.requires_grad_(False)

    def _out_of_memory(self, *_: Any) -> None:
        if self.rank == 1:
            raise MemoryError("as if there were no room")

    def memory(self) -> None:
        """Rank 1 runs out of memory in the middle of its calls, but for the smallest of so many plans."""
        model, network, gather = self.vggt, runtime.run_network, FrameShard.gather
        runtime.cpu_plan, memory.free_gpu_bytes = lambda *_: PLANS[0], lambda _: 1 << 30
        plans: list[int] = []
        gathered = 0

        def run_network(of: Any, call: Any, plan: Plan) -> Any:
            nonlocal gathered
            gathered = 0
            plans.append(PLANS.index(plan))
            return network(of, call, plan)

        def full(shard: FrameShard, *args: Any) -> Tensor:
            nonlocal gathered
            gathered += 1
            if self.rank == 1 and gathered == 3 and plans[-1] < self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return gather(shard, *args)

        model.set_runtime("on")
        asked = (("once", 6, 1), ("the same again", 6, 1), ("two at work", 2, 2), ("no room", 5, len(PLANS)))
        runtime.run_network, FrameShard.gather = run_network, full  # type: ignore[method-assign]
        model.set_context_parallel("all")
        for name, frames, self.fits in asked:
            plans.clear()
            self.raised(f"memory, {name}", partial(self._check, frames))
            self.found[f"plans, {name}"] = [*plans]
        model.set_runtime("on", low_vram=False)
        plans.clear()
        self.raised("memory, one plan", lambda: model(images_of(1, 5)))
        self.found["plans, one plan"] = [*plans]
        model.set_runtime("off")
        runtime.run_network, FrameShard.gather = network, gather  # type: ignore[method-assign]

    def _check(self, frames: int) -> None:
        got, want = self.vggt(images_of(1, frames)), self.alone.fused[frames]
        worst = max(relative_error(got[name], want[name]) for name in want)
        assert worst < 2e-5, worst

    def lost(self) -> None:
        """The last rank ends within a call: the others must not wait."""
        last = self.rank == RANKS - 1
        self.vggt.aggregator.global_blocks[1].register_forward_pre_hook(lambda *_: os._exit(0) if last else None)
        self.raised("lost", lambda: self.vggt(images_of(1, 6)))

    def outside(self) -> None:
        if self.rank == RANKS - 1:
            self.raised("not of the group", lambda: self.vggt.set_context_parallel("all", self.groups[2]))


def run(rank: int, folder: Path, models: dict[str, Int8Network], alone: Alone) -> None:
    # A store in a file: ranks that are forked from a process that holds a socket would share it.
    found = Rank(rank, dist.FileStore(str(folder / "store"), RANKS), models, alone)
    with torch.no_grad():
        found.equality()
        found.outputs()
        found.outside()
    found.failures()
    with torch.no_grad():
        found.memory()
    (folder / f"{rank}.json").write_text(json.dumps(found.found))  # of the last rank, which does not come back
    with torch.no_grad():
        found.lost()
    (folder / f"{rank}.json").write_text(json.dumps(found.found))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    models = {"vggt": vggt(), "omega": omega(), "int8": quantize(vggt(), "int8_dynamic", "native")}
    with torch.no_grad():
        alone = Alone(models)
    children = []
    for rank in range(RANKS):
        if (child := os.fork()) == 0:
            try:
                run(rank, folder, models, alone)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
