"""Resizes and crops an RGB image to the network's input, with the transform between the pixels of both.

Sizes are (H, W); points, scales and offsets are (x, y).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vggt_int8.images.pixels import OPAQUE_FROM

Mode = Literal["crop", "pad", "balanced", "max_size"]

# A picture that is resized to more than so many times the height that is kept is cropped first.
_TALLEST_RESIZED_WHOLE = 8
_MOST_ELONGATED = 2  # longer side over shorter side of what modes balanced and max_size keep


@dataclass(frozen=True)
class ImageTransform:
    """Maps an original image's pixels to the model's image: `model = original * scale + offset`.

    This holds for coordinates that start at the image's top left corner, so that the first pixel's center is (0.5, 0.5)
    and the image ends at (W, H): the convention of intrinsics with the principal point at (W / 2, H / 2), and of
    COLMAP. Coordinates that count pixels (first center at 0: array indices, tracks) are half a pixel lower; pass
    `pixel_center=0.0` for those.
    """

    original_size: tuple[int, int]  # (H, W)
    model_size: tuple[int, int]  # (H, W)
    scale: tuple[float, float]  # (x, y): model pixels per original pixel
    offset: tuple[float, float]  # (x, y): model position of the original's corner; negative where cropped
    # bool [H, W] of the model's image: False where the file is transparent (alpha, resized and cropped like the
    # colours, below one half); None where nothing is
    opaque: Tensor | None = field(default=None, compare=False, repr=False)

    def points_to_original(self, points: Tensor, *, pixel_center: float = 0.5) -> Tensor:
        """Model pixels [..., 2] (x, y) -> original pixels [..., 2]."""
        scale, offset = points.new_tensor(self.scale), points.new_tensor(self.offset)
        shift = 0.5 - pixel_center
        return (points + shift - offset) / scale - shift

    def points_to_model(self, points: Tensor, *, pixel_center: float = 0.5) -> Tensor:
        """Original pixels [..., 2] (x, y) -> model pixels [..., 2]; outside the image where cropped away."""
        scale, offset = points.new_tensor(self.scale), points.new_tensor(self.offset)
        shift = 0.5 - pixel_center
        return (points + shift) * scale + offset - shift

    def intrinsic_to_original(self, intrinsic: Tensor) -> Tensor:
        """Intrinsic [..., 3, 3] at model resolution -> at original resolution. Infinity stays infinity."""
        return intrinsics_to_original([self], intrinsic[None])[0]

    def intrinsic_to_model(self, intrinsic: Tensor) -> Tensor:
        """Intrinsic [..., 3, 3] at original resolution -> at model resolution."""
        scale, offset = intrinsic.new_tensor(self.scale), intrinsic.new_tensor(self.offset)
        rows = intrinsic[..., :2, :] * scale[:, None] + offset[:, None] * intrinsic[..., 2:, :]
        return torch.cat([rows, intrinsic[..., 2:, :]], dim=-2)

    def content_mask(self) -> Tensor:
        """bool [H, W] of the model's image: True where it shows the original, neither padding nor transparent."""
        inside = self._inside()
        return inside if self.opaque is None else inside & self.opaque

    def transparent_mask(self) -> Tensor:
        """bool [H, W] of the model's image: True where the original is transparent. Padding is not."""
        inside = self._inside()
        return torch.zeros_like(inside) if self.opaque is None else inside & ~self.opaque

    def padded_to(self, size: tuple[int, int]) -> "ImageTransform":
        """The transform after the model's image is padded around its middle to `size` (H, W)."""
        left, _, top, _ = _centered_padding(self.model_size, size)
        offset = (self.offset[0] + left, self.offset[1] + top)
        opaque = None if self.opaque is None else F.pad(self.opaque, _centered_padding(self.model_size, size))
        return replace(self, model_size=size, offset=offset, opaque=opaque)

    def _inside(self) -> Tensor:
        """bool [H, W] of the model's image: False on padding."""
        (offset_x, offset_y), (height, width) = self.offset, self.original_size
        left, right = round(offset_x), round(offset_x + width * self.scale[0])
        top, bottom = round(offset_y), round(offset_y + height * self.scale[1])
        mask = torch.zeros(self.model_size, dtype=torch.bool)
        mask[max(top, 0) : bottom, max(left, 0) : right] = True
        return mask


def intrinsics_to_original(transforms: Sequence[ImageTransform], intrinsics: Tensor) -> Tensor:
    """Intrinsics [S, ..., 3, 3] of S images at model resolution -> at their originals' resolutions."""
    shape = (len(transforms), *[1] * (intrinsics.dim() - 3), 2, 1)
    scale = intrinsics.new_tensor([transform.scale for transform in transforms]).view(shape)
    offset = intrinsics.new_tensor([transform.offset for transform in transforms]).view(shape)
    rows = (intrinsics[..., :2, :] - offset * intrinsics[..., 2:, :]) / scale
    return torch.cat([rows, intrinsics[..., 2:, :]], dim=-2)


def fit_image(
    image: Image.Image,
    mode: Mode,
    *,
    size: int = 518,
    patch_size: int = 14,
    alpha: Image.Image | None = None,
    original_size: tuple[int, int] | None = None,
) -> tuple[Tensor, ImageTransform]:
    """RGB image -> fp32 [3, H, W] in [0, 1] with H and W multiples of `patch_size`, and its transform.

    alpha: mode L, of the image's size; becomes the transform's `opaque`.
    original_size: (H, W) of the file if `image` is a reduced version of it.
    """
    height, width = original_size or (image.height, image.width)
    if mode in ("balanced", "max_size"):
        return _fit_to_resolution(image, alpha, (height, width), mode == "balanced", size, patch_size)
    if mode == "crop" or width >= height:
        new_width = size
        new_height = max(round(height * (size / width) / patch_size), 1) * patch_size
    else:
        new_height = size
        new_width = max(round(width * (size / height) / patch_size), 1) * patch_size
    crop_top = max(new_height - size, 0) // 2
    rows = (crop_top, min(crop_top + size, new_height))
    pixels = torch.from_numpy(_resized_rows(image, (new_height, new_width), rows)).permute(2, 0, 1).float() / 255
    opaque = None if alpha is None else _opaque(_resized_rows(alpha, (new_height, new_width), rows))

    scale = (new_width / width, new_height / height)
    transform = ImageTransform((height, width), (pixels.shape[1], new_width), scale, (0, -crop_top), opaque)
    if mode == "pad":
        return pad_white(pixels, (size, size)), transform.padded_to((size, size))
    return pixels, transform


def _fit_to_resolution(
    image: Image.Image,
    alpha: Image.Image | None,
    original_size: tuple[int, int],
    balanced: bool,
    size: int,
    patch_size: int,
) -> tuple[Tensor, ImageTransform]:
    """`fit_image` of modes balanced and max_size: the middle of what is too elongated, resized."""
    most_width, most_height = _MOST_ELONGATED * image.height, _MOST_ELONGATED * image.width
    box_width, box_height = min(image.width, most_width), min(image.height, most_height)
    left, top = (image.width - box_width) // 2, (image.height - box_height) // 2
    ratio = box_height / box_width
    if balanced:  # as many patches as a square of `size` has
        across = size / patch_size / ratio**0.5
        target = (round(across * ratio), round(across))
    else:
        longer = size / patch_size / max(box_height, box_width)
        target = (round(longer * box_height), round(longer * box_width))
    new_height, new_width = (max(patches, 1) * patch_size for patches in target)

    def resized(picture: Image.Image) -> np.ndarray:
        # Cropped first: a resize with a box would look at pixels beyond it.
        picture = picture.crop((left, top, left + box_width, top + box_height))
        return np.array(picture.resize((new_width, new_height), Image.Resampling.BICUBIC))

    pixels = torch.from_numpy(resized(image)).permute(2, 0, 1).float() / 255
    opaque = None if alpha is None else _opaque(resized(alpha))
    (height, width), reduced = original_size, (image.width, image.height)
    scale = (new_width / box_width * reduced[0] / width, new_height / box_height * reduced[1] / height)
    offset = (-left * new_width / box_width, -top * new_height / box_height)
    return pixels, ImageTransform(original_size, (new_height, new_width), scale, offset, opaque)


def _opaque(alpha: np.ndarray) -> Tensor | None:
    """bool [H, W] of resized alpha; None where nothing is transparent."""
    opaque = torch.from_numpy(alpha >= OPAQUE_FROM)
    return None if bool(opaque.all()) else opaque


def pad_white(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] -> [3, *size], the image in the middle."""
    padding = _centered_padding((image.shape[1], image.shape[2]), size)
    return F.pad(image, padding, value=1.0) if any(padding) else image


def _resized_rows(image: Image.Image, size: tuple[int, int], rows: tuple[int, int]) -> np.ndarray:
    """Rows `rows` of the image resized to `size` (H, W): what a picture takes is bounded, however tall it is."""
    (height, width), (top, bottom) = size, rows
    if height > _TALLEST_RESIZED_WHOLE * (bottom - top):
        box = (0, top * image.height / height, image.width, bottom * image.height / height)
        return np.array(image.resize((width, bottom - top), Image.Resampling.BICUBIC, box=box))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC))[top:bottom]


def _centered_padding(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) around `size` (H, W) inside `target`; an odd pixel goes right or bottom."""
    vertical, horizontal = target[0] - size[0], target[1] - size[1]
    return horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2
