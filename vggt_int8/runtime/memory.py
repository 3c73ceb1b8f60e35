"""How much a call works on at a time: the fastest plan whose peak fits into the free memory.

Bytes per token at width C = 1024 and 2 bytes a number, beside weights and images (VGGT-1B, 392 x 518 pixels: 1041
tokens a frame; all other sizes by `Shape.peak_bytes`):

    global attention    x 2 KB, q k v 6 KB, output 2 KB                                     10 KB
      key frames        x 2 KB, of the last layer also its result 2 KB; beside that         2 -> 4 KB
                        x, k and v of key frames, q and output of the frames at work        6 KB, 4 KB
      shared out        as with key frames, which are all frames if attention is exact; k and v of own frames twice
    frame attention     of the frames at work: q k v 6 KB, output 2 KB                      8 KB
    kept tokens         4 layers of two halves of 2 KB; the last is x while it is made      12 -> 16 KB
    MLP                 x 2 KB; per row of a part: hidden 8, its codes 4, x's codes 1       2 KB + 13 KB a row
      static scales     no hidden floats; counted as if there were                          2 KB + 5 KB a row
    dense head          per frame at work, at full size: 128 channels before the resize (17 MB) and after it (52 MB),
                        32 channels (13 MB); outputs are made in their place                82 MB
    outputs             6 floats a pixel                                                    4.9 MB a frame
      in pieces         tokens go as outputs come: all but the last layer's; at the end outputs, the largest twice
    tracks              per query point and frame: 12 KB, or 7 KB and 81 KB per frame at work

So 100 frames peak at 1.07 GB (blocks) + 1.3 (kept) or 1.7 + 0.66 (8 frames in a head). With exact attention 1000 frames
need 23 GB in the blocks, with key frames 17 and a little more; kept tokens that do not fit (4.3 GB a layer) go to the
host and back, which takes 0.2 s a layer.
"""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from vggt_int8.kernels.cpu.matmul import SUMS_AT_ONCE
from vggt_int8.machine import free_gpu_bytes
from vggt_int8.model.call import layers_read
from vggt_int8.model.config import VGGTConfig

MARGIN = 256 << 20  # convolution workspaces, float weights of a head, fragmentation
HIDDEN_CHANNELS = 32  # of a dense head's last convolution
# Up to this many frames, a CUDA graph may compute depth and points concurrently (`branches.BRANCHES`); always assumed.
MAPS_BESIDE = 2
CPU_TOKENS = 2048  # in encoder and frame blocks at a time: their qkv tensor (25 MB in VGGT-1B) is a reused block
CPU_MAP = 7 << 20  # numbers of a dense head's largest map: 28 MB, a reused block
# Above this, a graph holds more memory than it is worth: at 32 frames of 1041 tokens, 354 ms of kernels took 426 ms
# without a graph and 373 with one; at 100 frames, 2571 ms took 2636 without (H100).
GRAPH_TOKENS = 40_000


@dataclass(frozen=True)
class Plan:
    """How much a call works on at a time.

    frames: in encoder and frame blocks.
    rows: in an MLP.
    head_frames: in a dense head.
    scene_frames: in a global block with key frames; more than `frames`, so that the tail of a launch idles less of the
        GPU.
    layers_on_host: how many of the layers that the heads read, from the first on, are kept in host memory.
    outputs_on_host: maps are moved to the host as they are made, and stay there.
    in_pieces: kept tokens are copies, which the heads free after reading.
    graph: the call may be captured in a CUDA graph.
    """

    frames: int = 32
    rows: int = 32768
    head_frames: int = 8
    scene_frames: int = 128
    layers_on_host: int = 0
    outputs_on_host: bool = False
    in_pieces: bool = True
    graph: bool = False

    @property
    def tokens_on_host(self) -> bool:
        """Whether tokens are offloaded to host memory."""
        return self.layers_on_host > 0

    def graphed(self) -> "Plan":
        """The same plan for a CUDA graph, which frees nothing during a capture."""
        return replace(self, in_pieces=False, graph=True)

    def bounded(self, head_frames: int | None) -> "Plan":
        """The plan with at most `head_frames` frames in a dense head; None for no bound."""
        return self if head_frames is None else replace(self, head_frames=min(self.head_frames, head_frames))


_SMALL = Plan(frames=8, rows=8192, head_frames=2, scene_frames=32)
# From fast to small. Kept tokens are offloaded before outputs: they are larger, and the caller does not notice.
PLANS = (
    Plan(),
    _SMALL,
    *(replace(_SMALL, layers_on_host=layers) for layers in (1, 2, 4)),
    Plan(frames=4, rows=4096, head_frames=1, scene_frames=16, layers_on_host=4, outputs_on_host=True),
)
SMALLEST = PLANS[-1]


@dataclass(frozen=True)
class Shape:
    """What the memory of a call depends on.

    The call's sizes, bytes per number (2 or 4), query points per scene, and key frames (None if a global block attends
    to all frames). scene: frames of the whole scene if `frames` are those of one of several processes, else 0.
    """

    batch: int
    frames: int
    height: int
    width: int
    heads: tuple[str, ...]
    number_bytes: int
    points: int = 0
    keyframes: int | None = None
    scene: int = 0

    def tokens_per_frame(self, config: VGGTConfig) -> int:
        patches = (self.height // config.patch_size) * (self.width // config.patch_size)
        return patches + 1 + config.num_register_tokens

    def tokens(self, config: VGGTConfig) -> int:
        return self.batch * self.frames * self.tokens_per_frame(config)

    def peak_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        """Estimated peak of a call beside weights and images. The module docstring explains the terms."""
        if plan == PLANS[0] and self.tokens(config) <= GRAPH_TOKENS and not self.scene:
            plan = plan.graphed()
        return MARGIN + max(self._block_bytes(config, plan), self._head_bytes(config, plan))

    def _block_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        tokens, unit = self.tokens(config), config.embed_dim * self.number_bytes
        on_device = self._layers_on_device(config, plan)
        kept = 2 * (on_device - 1) if on_device else 0
        rows = min(plan.rows, tokens)
        mlp = int((config.mlp_ratio * (self.number_bytes + 1) + 1) * config.embed_dim) * rows
        exact = self.keyframes is None or self.keyframes >= self.frames
        if exact and not self.scene:
            return tokens * unit * kept + max(5 * tokens * unit, 2 * tokens * unit + mlp)
        frames, per_frame = self.batch * self.frames, self.tokens_per_frame(config) * unit
        inside = 4 * min(plan.frames, frames)
        between = self._seen_frames() + 2 * min(plan.scene_frames, frames)
        own = 2 if on_device else 1  # x, and where its layer is kept as it is, its result
        return tokens * unit * (kept + own) + max(inside * per_frame, between * per_frame, mlp)

    def _seen_frames(self) -> int:
        """Key-frame tokens, keys and values, in units of one such tensor for one frame."""
        if not self.scene:
            return 3 * self.batch * (self.keyframes or 0)
        seen = self.scene if self.keyframes is None else min(self.keyframes, self.scene)
        return self.batch * (2 * seen + 3 * min(seen, self.frames))

    def _head_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        """The larger of the beginning of the heads, when all tokens exist, and their end."""
        pixels, all_frames = self.height * self.width, self.batch * self.frames
        layers, unit = self._layers_on_device(config, plan), config.embed_dim * self.number_bytes
        kept_bytes, total, maps = self.tokens(config) * unit * 2 * layers, 0, 0
        values = {"depth": 2, "point": 4}
        outputs = [all_frames * pixels * 4 * values[head] for head in self.heads if head in values]
        if plan.in_pieces and outputs and "track" not in self.heads and not plan.outputs_on_host:
            end = sum(outputs) + max(outputs) * 3 // 4 + self._last_bytes(config, plan)
            return max(kept_bytes + self._map_bytes(config, plan), end)
        if not plan.outputs_on_host:
            total += sum(outputs)
        if "track" in self.heads:  # its feature maps, and the normalised copy that the pyramid starts from
            total += 3 * all_frames * pixels // 4 * config.track_features * self.number_bytes
        if set(self.heads) - {"camera"}:
            maps = self._map_bytes(config, plan)
        # The tracker runs last, after all tokens have been read.
        tracker = self._tracker_bytes(config, plan) if "track" in self.heads else 0
        return total + max(kept_bytes + maps, tracker)

    def _map_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        """The largest maps of a dense head during a step."""
        pixels, all_frames = self.height * self.width, self.batch * self.frames
        coarse = 64 * pixels // config.patch_size**2  # the map before the last resize: 8 x 8 pixels a patch
        channels = config.dpt_features // 2
        before, after = 3 * channels * coarse, channels * (coarse + pixels) + HIDDEN_CHANNELS * pixels
        frame = self.number_bytes * max(before, after)  # the first convolution of the two, or what follows it
        beside = all_frames <= MAPS_BESIDE and {"depth", "point"} <= set(self.heads)
        return longest_part(all_frames, plan.head_frames) * frame * (2 if beside else 1)

    def _last_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        """Tokens of the last layer, which are kept without a copy."""
        last = 2 if self._layers_on_device(config, plan) else 0
        return self.tokens(config) * config.embed_dim * self.number_bytes * last

    def _tracker_bytes(self, config: VGGTConfig, plan: Plan) -> int:
        """The larger of two moments: map values around each point, sampled and reordered for the product, beside the
        correlations; or the correlations beside the transformer's MLP activations for each point in each frame.
        """
        window, places = (2 * config.track_corr_radius + 1) ** 2, self.batch * self.points * self.frames
        correlations = 4 * places * config.track_corr_levels * window
        at_work = self.batch * self.points * min(self.frames, plan.head_frames)
        samples = 2 * 4 * at_work * window * config.track_features
        numbers = 12 * config.track_hidden_size + 3 * config.track_features
        return max(samples + 3 * correlations, correlations + places * numbers * self.number_bytes)

    def _layers_on_device(self, config: VGGTConfig, plan: Plan) -> int:
        """Number of layers read by the heads that stay on the GPU."""
        return max(0, len(layers_read(self.heads, config)) - plan.layers_on_host)


def parts(total: int, at_most: int) -> Iterator[slice]:
    """Split `range(total)` into the fewest slices of nearly equal length, each at most `at_most` long."""
    count = -(-total // at_most)
    for i in range(count):
        yield slice(i * total // count, (i + 1) * total // count)


def longest_part(total: int, at_most: int) -> int:
    """Length of the longest of `parts(total, at_most)` in constant time; estimates ask for millions of frames."""
    count = -(-total // at_most)
    return -(-total // count)


def choose_plan(shape: Shape, config: VGGTConfig, free: int) -> Plan:
    """The fastest plan that fits into `free` bytes, else the smallest."""
    return next((plan for plan in PLANS if shape.peak_bytes(config, plan) <= free), SMALLEST)


def plans_after(plan: Plan) -> tuple[Plan, ...]:
    """Plans to try after `plan` ran out of memory: the next smaller one, then the smallest.

    Estimates do not include fragmentation, which grows with the size of the call; usually one step is enough.
    """
    place = next((i for i, other in enumerate(PLANS) if plan in (other, other.graphed())), 0)
    return tuple(dict.fromkeys(PLANS[i] for i in (place + 1, len(PLANS) - 1) if place < i < len(PLANS)))


class Fallback(NamedTuple):
    """The plan that was tried after the chosen one ran out of memory, and how much memory was free then."""

    shape: Shape
    free: int
    plan: Plan

    @classmethod
    def of(cls, shape: Shape, plan: Plan, device: torch.device) -> "Fallback":
        return cls(shape, free_gpu_bytes(device), plan)

    def applies(self, shape: Shape, device: torch.device) -> bool:
        """Whether a call would run out of memory again: the same shape, and no more free memory than then."""
        return shape == self.shape and free_gpu_bytes(device) < self.free + MARGIN


def frames_that_fit(shape: Shape, config: VGGTConfig, free: int) -> int:
    """How many frames of this size the smallest plan runs in `free` bytes, images included. May be 0."""

    def needed(frames: int) -> int:
        images = shape.batch * frames * 3 * shape.height * shape.width * 4
        return images + replace(shape, frames=frames).peak_bytes(config, SMALLEST)

    low, high = 0, 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= free else (low, middle - 1)
    return low


def cpu_plan(shape: Shape, config: VGGTConfig) -> Plan:
    """The plan for CPUs: small blocks of memory, which the allocator keeps and reuses."""
    hidden, map_values = config.embed_dim * config.mlp_ratio, config.dpt_features * shape.height * shape.width
    return Plan(
        frames=max(1, CPU_TOKENS // shape.tokens_per_frame(config)),
        rows=max(64, int(SUMS_AT_ONCE // hidden)),
        head_frames=max(1, CPU_MAP // map_values),
        scene_frames=max(1, CPU_TOKENS // shape.tokens_per_frame(config)),
        in_pieces=False,
    )


def too_large(
    shape: Shape, config: VGGTConfig, device: torch.device, error: torch.OutOfMemoryError
) -> torch.OutOfMemoryError:
    """The error to raise if `SMALLEST` does not fit: how much memory is needed, and how many frames would fit."""
    traceback.clear_frames(error.__traceback__)  # they hold the tensors of the failed attempt
    torch.cuda.empty_cache()
    images = shape.batch * shape.frames * 3 * shape.height * shape.width * 4
    free = free_gpu_bytes(device)
    needed = shape.peak_bytes(config, SMALLEST)
    fit = frames_that_fit(shape, config, free + images)
    return torch.OutOfMemoryError(
        f"{shape.batch} x {shape.frames} frames of {shape.height} x {shape.width} pixels need about "
        f"{needed / 2**30:.1f} GiB beside the model and the images, even worked on in the smallest parts, but "
        f"{free / 2**30:.1f} GiB are free: about {fit} frames of this size fit"
    )
