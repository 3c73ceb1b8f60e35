"""`Call`: the arguments of one call of the network, checked once and without synchronizing with the device.

Shapes, dtypes and devices are known on the host. Values are checked where the device is waited for anyway
(`vggt_int8.pretrained.finite`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vggt_int8.global_attention import GlobalAttention
from vggt_int8.model.config import VGGTConfig
from vggt_int8.plain_data import check_integer
from vggt_int8.shards import FrameShard

if TYPE_CHECKING:
    from vggt_int8.model.vggt import VGGT

HEADS = ("camera", "depth", "point", "track")
# Output fields that cover only the call's own frames; all others cover all frames of the scene.
OF_OWN_FRAMES = frozenset({"depth", "depth_conf", "world_points", "world_points_conf", "descriptor"})
# Images lie in [0, 1], but resizing overshoots at edges: the widest range that a Lanczos window of three pixels
# produces is [-0.69, 1.69] (bicubic: [-0.45, 1.45]), which must pass. Images in 0 to 255 exceed it unless they are
# nearly black, which cannot be told from a dark scene; normalized images fall below it wherever they are dark.
LOWEST, HIGHEST = -0.7, 1.7
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Call:
    """The checked arguments of a call, made by `Call.of`.

    images: [B, S, 3, H, W], the caller's own values.
    query_points: [B, N, 2] fp32, pixels (x, y) of the first frame; None if the track head does not run.
    heads: the heads to run, all of which the model has.
    frames_chunk_size: frames that a dense head works on at a time, None for all.
    layers_read: aggregator layers that these heads read.
    attention: what the aggregator's global blocks attend to.
    descriptors: whether to return descriptors.
    shard: the frames of this process, if the scene is sharded; else None.
    """

    images: Tensor
    query_points: Tensor | None
    heads: tuple[str, ...]
    frames_chunk_size: int | None
    layers_read: frozenset[int]
    attention: GlobalAttention
    descriptors: bool = False
    shard: FrameShard | None = None

    @classmethod
    def of(
        cls,
        model: "VGGT",
        images: Any,
        query_points: Any = None,
        heads: Sequence[str] | None = None,
        frames_chunk_size: int | None = 8,
        global_attention: str | Sequence[str] | None = None,
        keyframes: int | None = None,
        descriptors: bool = False,
    ) -> "Call":
        """Check the arguments of `VGGT.forward` for `model`. Raises ValueError or TypeError, naming what does
        not fit.
        """
        config = model.config
        moved = "_hf_hook" in vars(model)  # by accelerate, where the model lies on several devices
        images = checked_images(images, config.patch_size, None if moved else model.aggregator.camera_token.device)
        heads = _checked_heads(heads, model.present_heads, query_points is not None)
        if query_points is not None:
            query_points = _checked_query_points(query_points, images, config.track_corr_levels)
        check_chunk_size(frames_chunk_size)
        attention = GlobalAttention.of(config.depth, global_attention, keyframes, model.default_attention)
        return cls(images, query_points, heads, frames_chunk_size, layers_read(heads, config), attention, descriptors)

    @property
    def scene_frames(self) -> int:
        """S of the whole scene, of which `images` may be a shard."""
        return self.images.shape[1] if self.shard is None else self.shard.frames

    def of_all_frames(self, own: Tensor) -> Tensor:
        """Gather a tensor of the call's frames [B, s, ...] to all frames of the scene [B, S, ...]."""
        return own if self.shard is None else self.shard.gather(own)


def layers_read(heads: Iterable[str], config: VGGTConfig) -> frozenset[int]:
    """Aggregator layers whose tokens these heads read."""
    heads = set(heads)
    camera = {config.depth - 1} if "camera" in heads else set()
    return frozenset(camera | set(config.dpt_layers) if heads - {"camera"} else camera)


def check_chunk_size(frames: int | None) -> None:
    """Raise ValueError or TypeError unless this is a valid number of frames for a dense head to work on at a time."""
    if frames is None or isinstance(frames, torch.SymInt):  # symbolic while compiling
        return
    check_integer("frames_chunk_size", frames, ", or None for all frames")
    if frames < 1:
        raise ValueError(f"frames_chunk_size must be at least 1, or None for all frames; got {frames}")


def checked_images(images: Any, patch: int, device: torch.device | None) -> Tensor:
    """Images as [B, S, 3, H, W]. device: the required device; None if accelerate moves inputs.

    Raises TypeError or ValueError that names what was passed instead.
    """
    check_is_tensor(images)
    shape = tuple(images.shape)
    if len(shape) not in (4, 5) or shape[-3] != 3:
        raise ValueError(
            f"images must be [S, 3, H, W] or [B, S, 3, H, W] with 3 color channels, got {shape}{_way_out(shape)}"
        )
    if 0 in shape:
        raise ValueError(f"images are empty: {shape}")
    if images.dtype not in _FLOATS:
        integers = not (images.is_floating_point() or images.is_complex() or images.dtype == torch.bool)
        way_out = "divide 8-bit images by 255" if integers else "convert them with .float()"
        raise TypeError(f"images must be floats in [0, 1], got {images.dtype}; {way_out}")
    height, width = shape[-2:]
    if height % patch or width % patch:
        near = [max(patch, patch * round(side / patch)) for side in (height, width)]
        raise ValueError(
            f"images are {height} x {width} pixels (height x width), but both must be multiples of the patch "
            f"size {patch}: resize or crop them, for example to {near[0]} x {near[1]}"
        )
    if device is not None and images.device != device and "meta" not in (device.type, images.device.type):
        raise ValueError(
            f"images are on {images.device}, but the model is on {device}: call model(images.to(model.device))"
        )
    return images if len(shape) == 5 else images[None]


def _checked_heads(heads: Sequence[str] | None, present: tuple[str, ...], tracks: bool) -> tuple[str, ...]:
    """present: heads that the model has. tracks: whether there are query points."""
    if tracks and "track" not in present:
        raise ValueError("query_points need the track head, but this model has none (enable_track is False)")
    if heads is None:
        running = tuple(head for head in present if head != "track" or tracks)
        if not running:
            why = "has the track head alone: pass query_points" if present else "has no head, so it predicts nothing"
            raise ValueError(f"this model {why}")
        return running
    heads = known_heads(heads, HEADS, present)
    if ("track" in heads) != tracks:
        raise ValueError(
            f"the track head and query_points go together: got heads {tuple(heads)} "
            f"and {'' if tracks else 'no '}query_points"
        )
    return heads


def known_heads(heads: Sequence[str], known: Sequence[str], present: Sequence[str]) -> tuple[str, ...]:
    """The requested heads. known: heads of this kind of network; present: heads of this model. Raises ValueError for
    others.
    """
    if isinstance(heads, str) or not heads:
        raise ValueError(f"heads must be a tuple with at least one of {tuple(known)}, or None for all; got {heads!r}")
    for head in heads:
        if head not in known:
            raise ValueError(f"unknown head {head!r}; there are {', '.join(known)}")
        if head not in present:
            raise ValueError(f"this model has no {head} head (enable_{head} is False)")
    return tuple(heads)


def _checked_query_points(query_points: Any, images: Tensor, levels: int) -> Tensor:
    """[B, N, 2] fp32. images: checked; levels: number of levels in the tracker's correlation pyramid.

    Raises TypeError or ValueError that names what was passed instead.
    """
    if not isinstance(query_points, Tensor):
        raise TypeError(f"query_points must be a tensor [N, 2] or [B, N, 2], got {type(query_points).__name__}")
    if query_points.dtype == torch.bool or query_points.is_complex() or query_points.layout != torch.strided:
        what = query_points.dtype if query_points.layout == torch.strided else query_points.layout
        raise TypeError(f"query_points must be pixels (x, y) as floats or integers, got {what}")
    batch, (height, width) = images.shape[0], images.shape[-2:]
    shape = tuple(query_points.shape)
    points = query_points[None] if len(shape) == 2 else query_points
    if points.dim() != 3 or points.shape[0] != batch or points.shape[2] != 2 or points.shape[1] == 0:
        raise ValueError(f"query_points must be [N, 2] or [B, N, 2] with B = {batch} and N > 0, got {shape}")
    if min(height, width) < 2**levels:
        raise ValueError(
            f"images of {height} x {width} pixels are too small to track points: "
            f"{levels} correlation levels need at least {2**levels} pixels a side"
        )
    if points.device != images.device:
        raise ValueError(
            f"query_points are on {points.device}, but the images are on {images.device}: "
            "use query_points.to(images.device)"
        )
    return points.float()


def _way_out(shape: tuple[int, ...]) -> str:
    """Advice for common mistakes in shapes."""
    if len(shape) == 3 and shape[0] == 3:
        return ": one image is images[None]"
    if len(shape) in (3, 4, 5) and shape[-1] == 3:
        order = {3: "(2, 0, 1)[None]", 4: "(0, 3, 1, 2)", 5: "(0, 1, 4, 2, 3)"}[len(shape)]
        return f": channels come before rows, use images.permute{order}"
    return ""


def check_is_tensor(images: Any) -> None:
    """Raise TypeError unless `images` is an ordinary dense tensor."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor [S, 3, H, W] in [0, 1], got {_described(images)}")
    if images.is_nested or images.is_quantized or images.layout != torch.strided:
        what, way_out = f"a tensor of layout {images.layout}", ".to_dense()"
        if images.is_nested:
            what, way_out = "a nested tensor", "torch.stack, which wants images of one size"
        elif images.is_quantized:
            what, way_out = f"a quantized tensor ({images.dtype})", ".dequantize()"
        raise TypeError(f"images must be an ordinary tensor [S, 3, H, W] in [0, 1], got {what}: use {way_out}")


def _described(value: Any) -> str:
    """What was passed instead of a tensor, and how to make a tensor of it."""
    kind = (
        type(value).__name__
        if type(value).__module__ == "builtins"
        else f"{type(value).__module__}.{type(value).__name__}"
    )
    if value is None:
        return "None: load_images(paths) makes one of files"
    if isinstance(value, str | bytes) or hasattr(value, "__fspath__"):
        return f"{kind} {value!r:.80}: load_images(paths) makes one of files"
    if type(value).__module__.startswith("PIL."):
        return f"{kind}: save it, and let load_images(paths) read and resize it"
    if isinstance(value, list | tuple) and value:
        if isinstance(value[0], Tensor):
            return f"a {kind} of {len(value)} tensors: use torch.stack"
        return f"a {kind} of {len(value)}, the first being {_described(value[0])}"
    if hasattr(value, "__array_interface__"):
        return f"{kind} {list(value.shape)} of {value.dtype}: use torch.from_numpy"
    return kind


def describe_range(low: float, high: float) -> str:
    """The error message for images with values from `low` to `high`, outside `LOWEST` to `HIGHEST`."""
    if low >= 0:
        guess = "divide them by 255" if high <= 255 else "scale them to it"
    else:
        guess = "do not normalise them: the model does, with ImageNet's mean and deviation"
    return f"images must lie in [0, 1], but hold values from {low:.4g} to {high:.4g}: {guess}"


def check_range(images: Tensor) -> None:
    """Raise ValueError if images are clearly not in [0, 1]. Synchronizes with the device."""
    low, high = (bound.item() for bound in images.detach().aminmax())
    if low < LOWEST or high > HIGHEST:
        raise ValueError(describe_range(low, high))
