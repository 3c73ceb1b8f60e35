"""Modes balanced and max_size: the public preprocessing of VGGT-Ω, exactly, and the way back to the original."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vggt_int8 import VGGTOmegaConfig, load_images

DATA = Path(__file__).parent.parent / "data"
CASES = json.loads((DATA / "parity_omega" / "golden_preprocess.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_pixels_and_sizes_are_the_public_ones(case: str) -> None:
    expected = load_file(DATA / "parity_omega" / "golden_preprocess.safetensors")[case]
    files = [DATA / "parity" / "images" / name for name in CASES[case]["files"]]
    mode = case.rpartition(".")[2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="images differ in size")
        small = load_images(files, mode, model=VGGTOmegaConfig(img_size=128))
        large = load_images(files, mode, model=VGGTOmegaConfig())
    assert torch.equal((small * 255).round().byte(), expected)
    assert list(large.shape) == CASES[case]["shape_at_512"]


@pytest.mark.parametrize("mode", ["balanced", "max_size"])
@pytest.mark.parametrize(("width", "height"), [(300, 90), (90, 300), (200, 150)])
def test_points_find_their_way_back(tmp_path: Path, mode: str, width: int, height: int) -> None:
    """A white square in the middle half of a black picture lies where the transform says."""
    image = Image.new("RGB", (width, height))
    left, top, side = width // 2 - 20, height // 2 - 20, 40
    image.paste((255, 255, 255), (left, top, left + side, top + side))
    image.save(tmp_path / "a.png")
    images, (transform,) = load_images(tmp_path / "a.png", mode, size=512, patch_size=16, return_transforms=True)
    rows, columns = (images[0, 0] > 0.5).nonzero().T
    corners = torch.tensor([[left, top], [left + side, top + side]], dtype=torch.float32)
    found = torch.stack([torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()]) + 1])
    torch.testing.assert_close(transform.points_to_model(corners), found.float(), rtol=0, atol=1.0)
    torch.testing.assert_close(transform.points_to_original(found.float()), corners, rtol=0, atol=0.5)
    assert transform.model_size == tuple(images.shape[-2:])
    assert transform.content_mask().all()
    longer = max(images.shape[-2:])
    assert longer == 512 if mode == "max_size" else 512 < longer < 736


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match="mode is 'fit'; it must be one of 'crop', 'pad', 'balanced', 'max_size'"):
        load_images("a.png", "fit")  # type: ignore[arg-type]
