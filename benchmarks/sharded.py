"""One scene on several GPUs: time, peak memory and what the exchange takes, beside one GPU, in one start.

    NCCL_NVLS_ENABLE=0 torchrun --nproc-per-node 2 -m benchmarks.sharded --frames 200 --ways exact --out rows.jsonl

VGGT-1B's shapes with random weights (`--model random`), 392 x 518 images, cameras, depth and points, left where they
were made. --gpus 1 2 4 measures the first 1, 2 and 4 of the processes (by default one, then all), `--ways` as in
`benchmarks.long_scenes`. Every row of several GPUs is compared with that of one, if that is among them: relative errors
of the outputs, and the speed-up. "exchange_ms": keys and values of all layers, gathered without any other work.
Milliseconds are the slowest process's, the median of `--repeats` calls after one to warm up; GiB the largest of any.

    torchrun --nproc-per-node 2 -m benchmarks.sharded --model embedded --device cpu --frames 5 --size 56 112

shows on a CPU that it runs. `--rehearse 2 4 8` on one GPU (`--nproc-per-node 1`) adds what each of so many has to do
but for the exchange: the first process's share, with the memory of keys and values of all frames.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.long_scenes import GIB, SIZE, attention_of
from benchmarks.long_scenes import build as random_network
from vggt_int8 import VGGTInt8
from vggt_int8.difference import relative_error
from vggt_int8.export.report import describe_machine, installed_versions
from vggt_int8.files import append_json_line
from vggt_int8.shards import FrameShard, Peers, share_out

Outputs = dict[str, Tensor]
WAIT = timedelta(hours=1)  # of processes whose turn it is not: 1000 frames exact take one GPU minutes a call


def build(source: str, recipe: str, device: torch.device) -> VGGTInt8:
    if source == "random":
        return random_network(recipe, str(device))
    model: VGGTInt8 = VGGTInt8.from_pretrained(source, recipe=recipe, device_map=str(device))
    model.requires_grad_(False).set_runtime("on")
    return model


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, by the clock of the host, which waits for the device before and behind it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3


class Bench:
    """One process of the start."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        dist.init_process_group("gloo" if self.device.type == "cpu" else None, timeout=WAIT)
        self.rank, self.world, self.arguments = dist.get_rank(), dist.get_world_size(), arguments
        if bad := [n for n in arguments.gpus or () if not 1 <= n <= self.world]:
            raise SystemExit(f"--gpus {bad[0]}: this start has {self.world} processes; take 1 to {self.world} of them")
        self.groups = {n: dist.new_group([*range(n)]) if 1 < n < self.world else None for n in arguments.gpus or ()}
        self.groups |= {} if arguments.gpus else {1: None, self.world: None}
        self.hosts = dist.new_group(backend="gloo")  # for words, of processes that have nothing to do, too
        self.model = build(arguments.model, arguments.recipe, self.device)

    def words(self, word: Any) -> list[Any]:
        """Of all processes, all of which come by."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, word, group=self.hosts)
        return found

    def measure(self, frames: int, way: str, alone: dict[str, Any] | None, gpus: int) -> dict[str, Any]:
        """A row, and the outputs of one GPU under "outputs"."""
        asked = attention_of(way, self.model.config.depth) | {"check_finite": False}
        mine: dict[str, Any] = {}
        if self.rank < gpus:
            generator = torch.Generator(self.device).manual_seed(0)
            images = torch.rand(frames, 3, *self.arguments.size, device=self.device, generator=generator)
            if gpus > 1:
                self.model.set_context_parallel("own", self.groups[gpus])
            with torch.no_grad():
                mine = self._timed(images, asked)
                mine |= {"exchange_ms": self._exchange(frames, asked, gpus)} if gpus > 1 else {}
            self.model.set_context_parallel("off")
            del images
        worst = [word for word in self.words({k: v for k, v in mine.items() if k != "outputs"}) if word]
        row = {"frames": frames, "way": way, "gpus": gpus, "ms": round(max(word["ms"] for word in worst), 1)}
        row |= {"gib": [word["gib"] for word in worst], "outputs": mine.get("outputs"), "mode": worst[0]["mode"]}
        if gpus > 1:
            exchange = max(word["exchange_ms"] for word in worst)
            row |= {"exchange_ms": round(exchange, 2), "exchange_share": round(exchange / row["ms"], 4)}
        if alone is not None:
            row |= {"speed_up": round(alone["ms"] / row["ms"], 3)}
            if self.rank == 0:
                row |= {"errors": errors(mine["outputs"], alone["outputs"])}
        return row

    def rehearse(self, frames: int, way: str, alone: dict[str, Any], gpus: int) -> dict[str, Any]:
        """A row of the first of so many processes without the others; what it makes of their frames means nothing."""
        words = attention_of(way, self.model.config.depth)
        images = torch.rand(frames, 3, *self.arguments.size, device=self.device)
        call, shard = self.model.checked_call(images, **words), FrameShard(None, 0, share_out(frames, gpus))
        own = replace(call, images=call.images[:, shard.own], shard=shard)
        with torch.no_grad():
            found = self._measured(lambda: self.model.run_here(own, checked=False))
        row = {"frames": frames, "way": way, "rehearsed": gpus, **found, "ms": round(found["ms"], 1)}
        return row | {"speed_up": round(alone["ms"] / row["ms"], 3)}

    def _timed(self, images: Tensor, asked: dict[str, Any]) -> dict[str, Any]:
        output = self.model(images, **asked)
        kept = {name: t.cpu() for name, t in output.items() if name != "images"} if self.rank == 0 else None
        del output
        return self._measured(lambda: self.model(images, **asked)) | {"outputs": kept}

    def _measured(self, call: Callable[[], object]) -> dict[str, Any]:
        """Time and peak of a call that has run, or is like one that has."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        times = [milliseconds(call, self.device) for _ in range(self.arguments.repeats)]
        gib = round(torch.cuda.max_memory_allocated() / GIB, 2) if self.device.type == "cuda" else None
        return {"ms": statistics.median(times), "gib": gib, "mode": self.model.runtime_report().mode}

    def _exchange(self, frames: int, asked: dict[str, Any], gpus: int) -> float:
        """Milliseconds to gather keys and values of all layers."""
        shard = FrameShard(Peers(self.groups[gpus], self.device), self.rank, share_out(frames, gpus))
        keyframes = asked.get("keyframes")
        own, counts = shard.key_frames(None if keyframes is None or keyframes >= frames else keyframes)
        config = self.model.config
        patches = self.arguments.size[0] * self.arguments.size[1] // config.patch_size**2
        shape = (1, len(own), patches + 1 + config.num_register_tokens, 2 * config.embed_dim)
        part = torch.zeros(shape, dtype=self.model.dtype, device=self.device)
        words = asked["global_attention"]
        layers = sum(word != "frames" for word in ([words] * config.depth if isinstance(words, str) else words))

        def gather() -> None:
            for _ in range(layers):
                shard.gather(part, counts)

        gather()
        found = statistics.median(milliseconds(gather, self.device) for _ in range(3))
        assert shard.peers is not None
        shard.peers.close()
        return found


def errors(own: Outputs, whole: Outputs) -> dict[str, float]:
    """Relative, of the first process's frames to those of one GPU."""
    return {name: relative_error(value, whole[name][:, : value.shape[1]]) for name, value in own.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[200])
    parser.add_argument("--ways", nargs="+", default=["exact", "keyframes:40"])
    parser.add_argument("--gpus", type=int, nargs="*", help="one, then all, unless it is said")
    parser.add_argument("--model", default="random", help="random: VGGT-1B's shapes; or a checkpoint, or embedded")
    parser.add_argument("--recipe", default="int8_dynamic")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    parser.add_argument("--rehearse", type=int, nargs="*", default=[], metavar="GPUS")
    bench = Bench(parser.parse_args())
    arguments, facts = bench.arguments, {}
    if arguments.rehearse and bench.world > 1:
        raise SystemExit("--rehearse is for one process: start it with --nproc-per-node 1")
    if bench.rank == 0:
        facts = {"recipe": arguments.recipe, "model": arguments.model, "size": [*arguments.size]}
        facts |= {"machine": describe_machine(bench.device), "versions": installed_versions()}

    def tell(row: dict[str, Any]) -> None:
        shown = {name: value for name, value in row.items() if name != "outputs"}
        if bench.rank == 0:
            print(shown, flush=True)
            if arguments.out:
                append_json_line(arguments.out, facts | shown)

    for frames in arguments.frames:
        for way in arguments.ways:
            alone = None
            for gpus in sorted(bench.groups):
                tell(row := bench.measure(frames, way, alone, gpus))
                alone = row if gpus == 1 else alone
            for gpus in arguments.rehearse:
                assert alone is not None
                tell(bench.rehearse(frames, way, alone, gpus))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
