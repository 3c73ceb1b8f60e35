"""`model.stream` of real networks: what a window gives is what a call gives, whichever the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vggt_int8 import VGGTInt8, VGGTOmegaConfig
from vggt_int8.pretrained.model import VGGTOmegaInt8

OMEGA = Path(__file__).parents[1] / "data" / "parity_omega"


@pytest.fixture(scope="module")
def omega() -> VGGTOmegaInt8:
    model = VGGTOmegaInt8(VGGTOmegaConfig(**json.loads((OMEGA / "tiny_omega_config.json").read_text())))
    model.load_state_dict(load_file(OMEGA / "tiny_omega.safetensors"))
    return model.eval()


def arrays(side: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(5)]


def images_of(frames: list[np.ndarray]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in frames])


def test_the_first_window_is_a_call(make_bare: Callable[[], VGGTInt8]) -> None:
    model = make_bare().eval()
    frames = arrays(model.config.img_size)
    found = list(model.stream(frames, window=3, overlap=1))
    assert [frame.window for frame in found] == [0, 0, 0, 1, 1]
    with torch.inference_mode():
        wanted = model(images_of(frames[:3]))
    torch.testing.assert_close(torch.stack([frame.extrinsic for frame in found[:3]]), wanted.extrinsic[0])
    torch.testing.assert_close(torch.stack([frame.depth for frame in found[:3]]), wanted.depth[0, ..., 0])


def test_omega_streams_and_looks_for_places_by_its_own_descriptors(omega: VGGTOmegaInt8, tmp_path: Path) -> None:
    frames = arrays(omega.config.img_size)
    found = list(omega.stream(frames, window=3, overlap=1, mode="balanced", folder=tmp_path / "kept"))
    assert len(found) == 5
    with torch.inference_mode():
        wanted = omega(images_of(frames[:3]), descriptors=True)
    torch.testing.assert_close(torch.stack([frame.extrinsic for frame in found[:3]]), wanted.extrinsic[0])
    kept = np.load(tmp_path / "kept" / "windows" / "00000" / "descriptors.npy")
    torch.testing.assert_close(torch.from_numpy(kept), wanted.descriptor[0])
    assert (tmp_path / "kept" / "windows" / "00001" / "loop.json").is_file()
