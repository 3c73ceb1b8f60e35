"""Images of the size that a model was made for."""

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.images.pictures import save, scene
from vggt_int8 import VGGTConfig, load_images


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return save(scene(), tmp_path / "a.png")


def test_size_and_patch_come_from_the_model(photo: Path, make_tiny) -> None:
    model = make_tiny()
    config = model.config
    expected = load_images(photo, size=config.img_size, patch_size=config.patch_size)
    for source in (model, config, SimpleNamespace(config=config), VGGTConfig(img_size=112, patch_size=8)):
        images = load_images(photo, model=source)
        size = 112 if isinstance(source, VGGTConfig) and source is not config else config.img_size
        assert images.shape[-1] == size
        if size == config.img_size:
            assert torch.equal(images, expected)


def test_what_is_no_model_and_what_contradicts_one_is_refused(photo: Path) -> None:
    for wrong in ("facebook/VGGT-1B", torch.nn.Linear(2, 2), 518, io.BytesIO()):
        with pytest.raises(TypeError, match=f"model is a {type(wrong).__name__} without img_size and patch_size"):
            load_images(photo, model=wrong)
    for options in ({"size": 518}, {"patch_size": 14}):
        with pytest.raises(ValueError, match="beside model="):
            load_images(photo, model=VGGTConfig(), **options)


@pytest.mark.parametrize("wrong", [True, 14.0, "14"])
@pytest.mark.parametrize("name", ["size", "patch_size"])
def test_sizes_are_integers(photo: Path, name: str, wrong: object) -> None:
    with pytest.raises(TypeError, match=f"^{name} is {wrong!r}; it must be an integer$"):
        load_images(photo, **{name: wrong})
