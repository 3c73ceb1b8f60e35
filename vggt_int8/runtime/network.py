"""The whole network on fused blocks: tensors in, tensors out, under a plan."""

from contextlib import nullcontext

from torch import Tensor

from vggt_int8.geometry import pose_encoding_to_camera
from vggt_int8.model.vggt import VGGT
from vggt_int8.runtime import dense
from vggt_int8.runtime.aggregator import Halves, run_aggregator
from vggt_int8.runtime.branches import branches
from vggt_int8.runtime.camera import run_camera_head
from vggt_int8.runtime.memory import MAPS_BESIDE, Plan

Tensors = dict[str, Tensor]


def run_network(model: VGGT, inputs: Tensors, heads: tuple[str, ...], plan: Plan) -> Tensors:
    """`images` [B, S, 3, H, W] and, for tracks, `query_points` [B, N, 2] -> the fields of `VGGTOutput`, by name."""
    images = inputs["images"]
    batch, frames = images.shape[:2]
    size = (images.shape[-2], images.shape[-1])
    tokens = run_aggregator(model.aggregator, images, model._layers_read_by(heads), plan)
    outputs: Tensors = {}
    maps = {"depth": ("depth", model.depth_head), "point": ("world_points", model.point_head)}
    with branches(images.device) as beside:
        if model.camera_head is not None and "camera" in heads:
            camera = tokens[model.config.depth - 1].camera_tokens(images.device).view(batch, frames, -1)
            with beside():
                pose = run_camera_head(model.camera_head, camera)
                extrinsic, intrinsic = pose_encoding_to_camera(pose, size)
            outputs |= {"pose_enc": pose, "extrinsic": extrinsic, "intrinsic": intrinsic}
        for name, (field, head) in maps.items():
            if head is not None and name in heads:
                with beside() if name == "depth" and batch * frames <= MAPS_BESIDE else nullcontext():
                    value, confidence = dense.predict(head, tokens, size, plan.head_frames, plan.outputs_on_host)
                outputs |= {field: value.unflatten(0, (batch, frames))}
                outputs |= {f"{field}_conf": confidence.unflatten(0, (batch, frames))}
    if model.track_head is not None and "track" in heads:
        outputs |= _track(model, tokens, inputs, plan)
    return outputs


def _track(model: VGGT, tokens: dict[int, Halves], inputs: Tensors, plan: Plan) -> Tensors:
    """The track head: its feature maps as of any dense head, its tracker as it is."""
    images, head = inputs["images"], model.track_head
    assert head is not None
    size = (images.shape[-2], images.shape[-1])
    maps = dense.features(head.feature_extractor, tokens, size, plan.head_frames)
    tokens.clear()
    maps = maps.unflatten(0, images.shape[:2])
    tracks, visibility, confidence = head.tracker(maps, inputs["query_points"], plan.head_frames)
    return {"track": tracks[-1], "vis": visibility, "conf": confidence}
