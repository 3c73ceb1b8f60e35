"""Checkpoints of VGGT's shape under other names: wrapped, without some heads, of other poses, named by their file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8 import CheckpointError, VGGTConfig, VGGTInt8
from vggt_int8.geometry import invert_extrinsic

IMAGES = torch.rand(3, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def fields(sizes: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in sizes.items() if not name.startswith("enable_")}


def test_a_named_file_with_fewer_heads_and_a_wrapper(
    bare_sizes: dict[str, object], bare_weights: dict[str, Tensor], make_bare: Callable[[], VGGTInt8], tmp_path: Path
) -> None:
    """As fine-tuned checkpoints come: in a repository without config.json, a level down, behind DDP's prefix."""
    saved = {"model": {f"module.{name}": value for name, value in bare_weights.items()}, "epoch": 20}
    torch.save(saved, tmp_path / "model_tracker_fixed_e20.pt")
    with pytest.warns(UserWarning, match="has no weights of these heads: point, track; it is loaded without"):
        model = VGGTInt8.from_pretrained(tmp_path, filename="model_tracker_fixed_e20.pt", **fields(bare_sizes)).eval()
    assert model.point_head is None
    assert model.track_head is None
    with torch.no_grad():
        assert torch.equal(model(IMAGES).depth, make_bare()(IMAGES).depth)
    with pytest.raises(CheckpointError, match="lacks point_head"):
        VGGTInt8.from_pretrained(
            tmp_path / "model_tracker_fixed_e20.pt", **fields(bare_sizes), enable_point=True, enable_track=False
        )


def test_poses_of_weights_for_mapping_leave_as_all_others(make_bare: Callable[[], VGGTInt8], tmp_path: Path) -> None:
    """Their weights predict world-from-camera; what leaves is camera-from-world, fused or not, saved or not."""
    plain = make_bare()
    plain.config.pose_convention = "world_from_camera"
    plain.save_pretrained(tmp_path)
    model = VGGTInt8.from_pretrained(tmp_path).eval()
    assert model.config.pose_convention == "world_from_camera"
    with torch.no_grad():
        want = invert_extrinsic(make_bare()(IMAGES).extrinsic)
        for mode in ("off", "on"):
            model.set_runtime(mode)
            got = model(IMAGES)
            torch.testing.assert_close(got.extrinsic, want, rtol=1e-4, atol=1e-5)
            assert torch.equal(got.pose_enc[..., :3], got.extrinsic[..., 3])
    with pytest.raises(
        ValueError, match="pose_convention is 'c2w'; choose one of 'camera_from_world', 'world_from_camera'"
    ):
        VGGTConfig(pose_convention="c2w")
