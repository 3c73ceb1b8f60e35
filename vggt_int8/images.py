"""Image files -> the tensor that the network reads, and the way back to each original image's pixels.

Sizes are (H, W); points, scales and offsets are (x, y). "Original" means the image as it is looked at: after
its EXIF orientation has been applied.

Two ways to fit an image into `size` x `size` pixels (518 for VGGT-1B); both sides become whole patches:
- `crop`: the width becomes `size`; a height above `size` is cropped around the middle.
- `pad`: the longer side becomes `size`; the other one is padded with white to a square. All pixels stay.

Sizes and pixels equal those of the reference preprocessing, for the same Pillow version.
"""

import glob
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
Source = str | PathLike[str]
Mode = Literal["crop", "pad"]


@dataclass(frozen=True)
class ImageTransform:
    """Where an original image's pixels lie in the model's image: `model = original * scale + offset`.

    This holds for coordinates that start at the image's top left corner, so that the first pixel's centre is
    (0.5, 0.5) and the image ends at (W, H): the convention of intrinsics with the principal point at (W / 2,
    H / 2), and of COLMAP. Coordinates that count pixels (first centre at 0: array indices, tracks) are half a
    pixel lower; for those pass `pixel_center=0.0`.
    """

    original_size: tuple[int, int]  # (H, W)
    model_size: tuple[int, int]  # (H, W)
    scale: tuple[float, float]  # (x, y): model pixels per original pixel
    offset: tuple[int, int]  # (x, y): model position of the original's corner; negative where cropped

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
        scale, offset = intrinsic.new_tensor(self.scale), intrinsic.new_tensor(self.offset)
        rows = (intrinsic[..., :2, :] - offset[:, None] * intrinsic[..., 2:, :]) / scale[:, None]
        return torch.cat([rows, intrinsic[..., 2:, :]], dim=-2)

    def intrinsic_to_model(self, intrinsic: Tensor) -> Tensor:
        """Intrinsic [..., 3, 3] at original resolution -> at model resolution."""
        scale, offset = intrinsic.new_tensor(self.scale), intrinsic.new_tensor(self.offset)
        rows = intrinsic[..., :2, :] * scale[:, None] + offset[:, None] * intrinsic[..., 2:, :]
        return torch.cat([rows, intrinsic[..., 2:, :]], dim=-2)

    def content_mask(self) -> Tensor:
        """bool [H, W] of the model's image: True where it shows the original, False on padding."""
        (height, width), (offset_x, offset_y) = self.model_size, self.offset
        content_width = round(self.original_size[1] * self.scale[0])
        content_height = round(self.original_size[0] * self.scale[1])
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[max(offset_y, 0) : offset_y + content_height, max(offset_x, 0) : offset_x + content_width] = True
        return mask

    def padded_to(self, size: tuple[int, int]) -> "ImageTransform":
        """The transform after the model's image is padded around its middle to `size` (H, W)."""
        left, _, top, _ = _centered_padding(self.model_size, size)
        offset = (self.offset[0] + left, self.offset[1] + top)
        return ImageTransform(self.original_size, size, self.scale, offset)


@overload
def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    size: int = 518,
    patch_size: int = 14,
    return_transforms: Literal[False] = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Tensor: ...


@overload
def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    size: int = 518,
    patch_size: int = 14,
    return_transforms: Literal[True],
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, list[ImageTransform]]: ...


def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    size: int = 518,
    patch_size: int = 14,
    return_transforms: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Tensor | tuple[Tensor, list[ImageTransform]]:
    """Image files -> fp32 [S, 3, H, W] in [0, 1], and on request one `ImageTransform` per image.

    images: what `find_images` takes: files, folders, glob patterns, one or a list.
    mode: `crop` or `pad`, see the module's docstring.
    size, patch_size: of the model: `config.img_size` and `config.patch_size`.
    on_image: called with (images done, all images) after each, for a progress bar.

    Images that come out in different sizes are padded with white to the largest, with a warning.

    Raises FileNotFoundError for a path or pattern without a file, and ValueError, which names the file or
    folder, for one that is empty, truncated, not an image, or above Pillow's limit for decompression bombs.
    """
    if mode not in ("crop", "pad"):
        raise ValueError(f"mode is {mode!r}; it must be 'crop' or 'pad'")
    if patch_size < 1 or size < patch_size or size % patch_size:
        raise ValueError(f"size {size} must be a positive multiple of patch_size {patch_size}")
    paths = find_images(images)
    fitted = []
    for path in paths:
        fitted.append(fit_image(open_image(path), mode, size=size, patch_size=patch_size))
        if on_image is not None:
            on_image(len(fitted), len(paths))
    tensors, transforms = [image for image, _ in fitted], [transform for _, transform in fitted]
    model_size = _largest_size([transform.model_size for transform in transforms], paths)
    batch = torch.stack([_pad_white(image, model_size) for image in tensors])
    if not return_transforms:
        return batch
    return batch, [transform.padded_to(model_size) for transform in transforms]


def find_images(images: Source | Sequence[Source]) -> list[Path]:
    """Files, folders and glob patterns (one, or a list of them) -> image files.

    A list keeps its order. The files of a folder or pattern come in natural order (`2.jpg` before `10.jpg`);
    among them only names that end in one of `IMAGE_SUFFIXES` count, hidden files do not, and subfolders are
    not searched (a pattern with `**` searches them).
    """
    sources = list(images) if isinstance(images, Iterable) and not isinstance(images, str | bytes) else [images]
    for source in sources:
        if not isinstance(source, str | PathLike):
            raise TypeError(f"images must be paths of files, folders or glob patterns; got a {type(source).__name__}")
    if not sources or "" in sources:  # an empty path would mean the current folder
        raise ValueError("no images given: pass at least one file, folder or glob pattern")
    return [path for source in sources for path in _expand(source)]


def open_image(path: Source) -> Image.Image:
    """One image file -> 8-bit RGB: EXIF orientation applied, alpha composed on white, first frame only."""
    path = Path(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Between one and two times its limit Pillow only warns; here the limit is a limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} is too large: {error} If you trust the file, make it smaller or raise "
            f"`PIL.Image.MAX_IMAGE_PIXELS`, now {Image.MAX_IMAGE_PIXELS}"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{path} is not an image that Pillow can read (other format, or a damaged header): "
            f"remove it, or convert it to JPEG or PNG"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many types; each becomes one that names the file
        raise ValueError(f"{path} cannot be decoded, it may be truncated or damaged: {error}") from error


def fit_image(
    image: Image.Image, mode: Mode, *, size: int = 518, patch_size: int = 14
) -> tuple[Tensor, ImageTransform]:
    """RGB image -> fp32 [3, H, W] in [0, 1] with H and W multiples of `patch_size`, and its transform."""
    width, height = image.size
    if mode == "crop" or width >= height:
        new_width = size
        new_height = max(round(height * (size / width) / patch_size), 1) * patch_size
    else:
        new_height = size
        new_width = max(round(width * (size / height) / patch_size), 1) * patch_size
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255

    crop_top = max(new_height - size, 0) // 2
    pixels = pixels[:, crop_top : crop_top + size]
    scale = (new_width / width, new_height / height)
    transform = ImageTransform((height, width), (pixels.shape[1], new_width), scale, (0, -crop_top))
    if mode == "pad":
        return _pad_white(pixels, (size, size)), transform.padded_to((size, size))
    return pixels, transform


def _expand(source: Source) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _only_images(path.iterdir(), f"folder {path}")
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"no such image file or folder: {path}")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not matches:
        raise FileNotFoundError(f"no file matches the pattern {path}")
    return _only_images(matches, f"pattern {path}")


def _only_images(candidates: Iterable[Path], where: str) -> list[Path]:
    files = [path for path in candidates if path.is_file() and not path.name.startswith(".")]
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        others = ", ".join(sorted({path.suffix or path.name for path in files})[:8])
        raise ValueError(
            f"{where} holds no images ({f'only {others}' if others else 'it is empty'}); "
            f"names must end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return sorted(found, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    """Digits compare as numbers, letters without case; the plain path decides ties."""
    parts = re.split(r"(\d+)", str(path).casefold())
    # Text and digits alternate, so entries at the same place have the same type.
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], str(path)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255 or drop the low byte
        wide = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.round(wide / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels (Pillow mode {image.mode}) have no known range; save it with 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _largest_size(sizes: Sequence[tuple[int, int]], paths: Sequence[Path]) -> tuple[int, int]:
    largest = (max(height for height, _ in sizes), max(width for _, width in sizes))
    if len(set(sizes)) > 1:
        groups = []
        for height, width in sorted(set(sizes)):
            names = [path.name for path, size in zip(paths, sizes, strict=True) if size == (height, width)]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            groups.append(f"{height}x{width}: {', '.join(names[:5])}{more}")
        warnings.warn(
            f"images differ in size (height x width; {'; '.join(groups)}); all are padded with white to "
            f"{largest[0]}x{largest[1]}",
            stacklevel=3,
        )
    return largest


def _centered_padding(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) around `size` (H, W) inside `target`; an odd pixel goes right or bottom."""
    vertical, horizontal = target[0] - size[0], target[1] - size[1]
    return horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2


def _pad_white(image: Tensor, size: tuple[int, int]) -> Tensor:
    padding = _centered_padding((image.shape[1], image.shape[2]), size)
    return F.pad(image, padding, value=1.0) if any(padding) else image
