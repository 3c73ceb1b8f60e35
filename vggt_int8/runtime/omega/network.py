"""All of VGGT-Ω on fused blocks, under a plan."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggt_int8.geometry import pose_encoding_to_camera
from vggt_int8.model.call import Call
from vggt_int8.model.omega.camera_head import LEAST_FIELD_OF_VIEW, OmegaCameraHead
from vggt_int8.model.omega.network import VGGTOmega
from vggt_int8.model.omega.text_head import TextAlignmentHead
from vggt_int8.runtime.aggregator import run_aggregator
from vggt_int8.runtime.blocks import run_block
from vggt_int8.runtime.branches import branches
from vggt_int8.runtime.linear import linear, norm_linear
from vggt_int8.runtime.memory import Plan
from vggt_int8.runtime.omega.aggregator import OmegaBlocks, encode
from vggt_int8.runtime.omega.dense import predict

Tensors = dict[str, Tensor]


def run_omega(model: VGGTOmega, call: Call, plan: Plan) -> Tensors:
    """The fields of `VGGTOmegaOutput` that the call's heads produce, by name."""
    images, heads = call.images, call.heads
    batch, frames = images.shape[:2]
    size = (images.shape[-2], images.shape[-1])
    asked = (call.layers_read, call.attention, plan, call.descriptors)
    tokens, descriptor = run_aggregator(
        model.aggregator, images, *asked, shard=call.shard, encode=encode, blocks_of=OmegaBlocks
    )
    special = tokens[model.config.depth - 1].special_tokens(model.aggregator.num_special, images.device)
    special = call.of_all_frames(special.unflatten(0, (batch, frames)))
    outputs: Tensors = {"camera_and_register_tokens": special.float()}
    outputs |= {} if descriptor is None else {"descriptor": descriptor}
    with branches(images.device) as beside:
        if model.camera_head is not None and "camera" in heads:
            with beside():
                pose = run_camera_head(model.camera_head, special, plan.rows)
                extrinsic, intrinsic = pose_encoding_to_camera(pose, size)
            outputs |= {"pose_enc": pose, "extrinsic": extrinsic, "intrinsic": intrinsic}
        if model.text_alignment_head is not None and "text" in heads:
            with beside():
                embedding, token = run_text_head(model.text_alignment_head, special, plan.rows)
            outputs |= {"text_alignment_embedding": embedding, "text_alignment_token": token}
        if model.dense_head is not None and "depth" in heads:
            depth, confidence = predict(model.dense_head, tokens, size, plan.head_frames, plan.outputs_on_host)
            outputs["depth"] = depth.unflatten(0, (batch, frames))
            outputs["depth_conf"] = confidence.unflatten(0, (batch, frames))
    return outputs


def run_camera_head(head: OmegaCameraHead, special: Tensor, rows: int) -> Tensor:
    """Camera and register tokens [B, S, n, 2C] -> pose encoding [B, S, 9] fp32."""
    x = _run_blocks(head.trunk, _layer_norm(special, head.token_norm).flatten(0, 2), len(special), rows)
    camera = x.view(special.shape)[:, :, 0].flatten(0, 1)
    hidden = norm_linear(camera, head.trunk_norm, head.camera_branch[0], gelu=True)
    pose = linear(hidden, head.pose_output).float().unflatten(0, special.shape[:2])
    return torch.cat([pose[..., :7], F.relu(pose[..., 7:]) + LEAST_FIELD_OF_VIEW], dim=-1)


def run_text_head(head: TextAlignmentHead, special: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Camera and register tokens [B, S, n, 2C] -> embedding [B, 2C] of unit length, and the token that it is computed
    from.
    """
    scene = _layer_norm(special, head.token_norm).flatten(1, 2)
    x = torch.cat([head.language_token.to(scene).expand(len(scene), -1, -1), scene], dim=1)
    read = _run_blocks(head.readout_blocks, x.flatten(0, 1), len(scene), rows).view(x.shape)[:, 0]
    token = _layer_norm(read, head.language_token_norm)
    first, _, norm, last = head.embedding_projector
    assert isinstance(norm, nn.LayerNorm)
    embedding = norm_linear(F.gelu(linear(token, first)), norm, last)
    return F.normalize(embedding.float(), dim=-1), token.float()


def _run_blocks(blocks: nn.Sequential, x: Tensor, sequences: int, rows: int) -> Tensor:
    for block in blocks:
        x = run_block(block, x, sequences, None, rows)
    return x


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
