"""The whole network on fused blocks, under a plan."""

from contextlib import nullcontext

from torch import Tensor

from vggt_int8.geometry import pose_encoding_to_camera
from vggt_int8.model.call import Call
from vggt_int8.model.families import AnyNetwork
from vggt_int8.model.omega.network import VGGTOmega
from vggt_int8.model.track_head import TrackHead
from vggt_int8.model.vggt import VGGT
from vggt_int8.runtime import dense
from vggt_int8.runtime.aggregator import run_aggregator
from vggt_int8.runtime.branches import branches
from vggt_int8.runtime.camera import run_camera_head
from vggt_int8.runtime.kept import Halves
from vggt_int8.runtime.memory import MAPS_BESIDE, Plan, Shape
from vggt_int8.runtime.omega.memory import OmegaShape
from vggt_int8.runtime.omega.network import run_omega

Tensors = dict[str, Tensor]


def run_network(model: AnyNetwork, call: Call, plan: Plan) -> Tensors:
    """The output fields of the call's heads, by name."""
    return run_omega(model, call, plan) if isinstance(model, VGGTOmega) else run_vggt(model, call, plan)


def shape_of(model: AnyNetwork) -> type[Shape]:
    """The class that estimates the memory of a call."""
    return OmegaShape if isinstance(model, VGGTOmega) else Shape


def run_vggt(model: VGGT, call: Call, plan: Plan) -> Tensors:
    """The fields of `VGGTOutput`."""
    images, heads = call.images, call.heads
    batch, frames = images.shape[:2]
    size = (images.shape[-2], images.shape[-1])
    tokens, descriptor = run_aggregator(
        model.aggregator, images, call.layers_read, call.attention, plan, call.descriptors, shard=call.shard
    )
    outputs: Tensors = {} if descriptor is None else {"descriptor": descriptor}
    maps = {"depth": ("depth", model.depth_head), "point": ("world_points", model.point_head)}
    with branches(images.device) as beside:
        if model.camera_head is not None and "camera" in heads:
            camera = tokens[model.config.depth - 1].camera_tokens(images.device).view(batch, frames, -1)
            camera = call.of_all_frames(camera)
            with beside():
                pose = model.as_camera_from_world(run_camera_head(model.camera_head, camera))
                extrinsic, intrinsic = pose_encoding_to_camera(pose, size)
            outputs |= {"pose_enc": pose, "extrinsic": extrinsic, "intrinsic": intrinsic}
        wanted = {field: head for name, (field, head) in maps.items() if head is not None and name in heads}
        made = {}
        if plan.in_pieces and wanted:
            how = (plan.head_frames, plan.outputs_on_host, call.query_points is None)
            made = dict(zip(wanted, dense.predict_together([*wanted.values()], tokens, size, *how), strict=True))
        else:
            for field, head in wanted.items():
                with beside() if field == "depth" and batch * frames <= MAPS_BESIDE else nullcontext():
                    made[field] = dense.predict(head, tokens, size, plan.head_frames, plan.outputs_on_host)
        for field, (value, confidence) in made.items():
            outputs |= {field: value.unflatten(0, (batch, frames))}
            outputs |= {f"{field}_conf": confidence.unflatten(0, (batch, frames))}
    if model.track_head is not None and call.query_points is not None:
        outputs |= _track(model.track_head, tokens, call, call.query_points, plan)
    return outputs


def _track(head: TrackHead, tokens: dict[int, Halves], call: Call, points: Tensor, plan: Plan) -> Tensors:
    """The track head: fused feature maps, and the tracker as a module."""
    images = call.images
    size = (images.shape[-2], images.shape[-1])
    maps = dense.features(head.feature_extractor, tokens, size, plan.head_frames)
    tokens.clear()
    maps = maps.unflatten(0, images.shape[:2])
    tracks, visibility, confidence = head.tracker(maps, points, plan.head_frames, call.shard)
    return {"track": tracks[-1], "vis": visibility, "conf": confidence}
