"""Image files -> one tensor: `load_images`, which finds, checks and reads them, and its last step separately."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, Unpack, get_args, overload

import torch
from torch import Tensor

from vggt_int8.ahead import begun
from vggt_int8.images.check import check_images
from vggt_int8.images.decode import decode_for_another
from vggt_int8.images.find import Source, find_images
from vggt_int8.images.fit import ImageTransform, Mode, fit_image, pad_white
from vggt_int8.images.names import some_names
from vggt_int8.images.pillow_warnings import pillow_silenced
from vggt_int8.images.pixels import narrow_bits
from vggt_int8.plain_data import check_integer


@overload
def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    model: Any = None,
    size: int | None = None,
    patch_size: int | None = None,
    max_pixels: int | None = None,
    fast_jpeg: bool = False,
    return_transforms: Literal[False] = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Tensor: ...


@overload
def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    model: Any = None,
    size: int | None = None,
    patch_size: int | None = None,
    max_pixels: int | None = None,
    fast_jpeg: bool = False,
    return_transforms: Literal[True],
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, list[ImageTransform]]: ...


def load_images(
    images: Source | Sequence[Source],
    mode: Mode = "crop",
    *,
    model: Any = None,
    size: int | None = None,
    patch_size: int | None = None,
    max_pixels: int | None = None,
    fast_jpeg: bool = False,
    return_transforms: bool = False,
    on_image: Callable[[int, int], None] | None = None,
) -> Tensor | tuple[Tensor, list[ImageTransform]]:
    """Image files -> fp32 [S, 3, H, W] in [0, 1], and if requested one `ImageTransform` per image.

    images: as in `find_images`: files, folders, glob patterns, one or a list.
    mode: `crop`, `pad`, `balanced` or `max_size`, see the package's docstring.
    model: the model that will read them, or its config: determines size and patch size. By default those of VGGT-1B.
    size, patch_size: instead of a model: `config.img_size` and `config.patch_size`.
    max_pixels: the largest image that is decoded; by default 250 megapixels (`MAX_PIXELS`).
    fast_jpeg: decode JPEGs at 1/2, 1/4 or 1/8 of their size as long as 1.4 times `size` remains: three times as fast
        for 12 megapixels, with a close but not equal result.
    on_image: called with (images done, all images) after each, for a progress bar.

    Transparent pixels are white, and False in `ImageTransform.content_mask()`. Images of different resulting sizes are
    padded with white to the largest. Warns about that, about all files and frames that are not used, and about 16-bit
    images that use fewer bits.

    Raises FileNotFoundError for a path or pattern without a file; ValueError, naming the file or folder, for one that
    is empty, truncated, not an image, of an unknown range, or too large; TypeError for sizes that are not integers.
    File system errors (permission) are passed on.
    """
    size, patch_size = _checked_sizes(mode, model, size, patch_size)
    paths = find_images(images, stacklevel=2)
    check_images(paths, max_pixels=max_pixels, stacklevel=2)
    how: ReadOptions = {"size": size, "patch_size": patch_size, "max_pixels": max_pixels, "fast_jpeg": fast_jpeg}
    batch, transforms = read_images(paths, mode, on_image=on_image, stacklevel=2, **how)
    return (batch, transforms) if return_transforms else batch


class ReadOptions(TypedDict, total=False):
    """Keywords of `reading`, which `load_images` explains."""

    model: Any
    size: int | None
    patch_size: int | None
    max_pixels: int | None
    fast_jpeg: bool


def read_images(
    paths: Sequence[Path],
    mode: Mode = "crop",
    *,
    on_image: Callable[[int, int], None] | None = None,
    stacklevel: int = 1,
    **how: Unpack[ReadOptions],
) -> tuple[Tensor, list[ImageTransform]]:
    """The pixels of image files, one or more, as `load_images` gives them with their transforms."""
    with reading(paths, mode, **how) as finish:
        return finish(on_image, stacklevel + 1)


class Finish(Protocol):
    def __call__(
        self, on_image: Callable[[int, int], None] | None = None, stacklevel: int = 1
    ) -> tuple[Tensor, list[ImageTransform]]: ...


@contextmanager
def reading(
    paths: Sequence[Path],
    mode: Mode = "crop",
    *,
    model: Any = None,
    size: int | None = None,
    patch_size: int | None = None,
    max_pixels: int | None = None,
    fast_jpeg: bool = False,
) -> Iterator[Finish]:
    """`read_images` in two parts: threads start reading now, while the block does something else, such as loading a
    model; the function that it yields waits for them, and returns and raises what `read_images` does.
    """
    size, patch_size = _checked_sizes(mode, model, size, patch_size)

    def read(path: Path) -> _Read:
        return _read(path, mode, size, patch_size, max_pixels, fast_jpeg)

    with pillow_silenced(), begun(read, paths, results=len(paths)) as results:
        yield lambda on_image=None, stacklevel=1: _gathered(paths, results, on_image, stacklevel + 1)


def _gathered(
    paths: Sequence[Path], results: Iterator["_Read"], on_image: Callable[[int, int], None] | None, stacklevel: int
) -> tuple[Tensor, list[ImageTransform]]:
    """The batch of everything that was read, with warnings."""
    fitted: list[tuple[Tensor, ImageTransform]] = []
    narrow: dict[int, list[str]] = {}
    invisible: list[str] = []
    unturned: list[str] = []
    highest = 0
    for read in results:
        fitted.append((read.pixels, read.transform))
        if bits := narrow_bits(read.largest):
            narrow.setdefault(bits, []).append(read.path.name)
            highest = max(highest, read.largest or 0)
        if not read.transform.content_mask().any():
            invisible.append(read.path.name)
        if not read.exif_readable:
            unturned.append(read.path.name)
        if on_image is not None:
            on_image(len(fitted), len(paths))
    if narrow:
        groups = "; ".join(f"{bits} bits: {some_names(names)}" for bits, names in sorted(narrow.items()))
        warnings.warn(
            f"16-bit images use fewer bits ({groups}): their values end at {highest}, of 65535, and are read "
            f"as that, nearly without contrast; where white is less, scale to 16 bits (from {max(narrow)}: "
            f"times {65535 / (2 ** max(narrow) - 1):.2f})",
            stacklevel=stacklevel + 1,
        )
    if invisible:
        warnings.warn(f"images are transparent everywhere: {some_names(invisible)}", stacklevel=stacklevel + 1)
    if unturned:
        warnings.warn(
            f"EXIF data cannot be read, so the images are taken as they are stored: {some_names(unturned)}",
            stacklevel=stacklevel + 1,
        )
    transforms = [transform for _, transform in fitted]
    model_size, remark = _largest_size([transform.model_size for transform in transforms], paths)
    if remark:
        warnings.warn(remark, stacklevel=stacklevel + 1)
    batch = torch.stack([pad_white(image, model_size) for image, _ in fitted])
    return batch, [transform.padded_to(model_size) for transform in transforms]


class _Read(NamedTuple):
    path: Path
    pixels: Tensor
    transform: ImageTransform
    largest: int | None
    exif_readable: bool


def _read(path: Path, mode: Mode, size: int, patch_size: int, max_pixels: int | None, fast_jpeg: bool) -> _Read:
    """One file, decoded and fitted: what a worker does while the others are at theirs."""
    decoded = decode_for_another(path, max_pixels=max_pixels, size=size, fast_jpeg=fast_jpeg)
    rgb, alpha = decoded.pixels.rgb, decoded.pixels.alpha
    pixels, transform = fit_image(rgb, mode, size=size, patch_size=patch_size, alpha=alpha, original_size=decoded.size)
    return _Read(path, pixels, transform, decoded.pixels.largest, decoded.exif_readable)


def _checked_sizes(mode: str, model: Any, size: int | None, patch_size: int | None) -> tuple[int, int]:
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; it must be one of {', '.join(map(repr, get_args(Mode)))}")
    if model is not None:
        if size is not None or patch_size is not None:
            raise ValueError(
                f"size {size} and patch_size {patch_size} beside model=: the model says both, leave them out"
            )
        config = getattr(model, "config", model)
        size, patch_size = getattr(config, "img_size", None), getattr(config, "patch_size", None)
        if not isinstance(size, int) or not isinstance(patch_size, int):
            raise TypeError(
                f"model is a {type(model).__name__} without img_size and patch_size in its config: pass a VGGTInt8, a "
                "VGGT or a VGGTConfig, or size= and patch_size="
            )
    size, patch_size = 518 if size is None else size, 14 if patch_size is None else patch_size
    check_integer("size", size)
    check_integer("patch_size", patch_size)
    if patch_size < 1 or size < patch_size or size % patch_size:
        raise ValueError(f"size {size} must be a positive multiple of patch_size {patch_size}")
    return size, patch_size


def _largest_size(sizes: Sequence[tuple[int, int]], paths: Sequence[Path]) -> tuple[tuple[int, int], str | None]:
    """(H, W) that holds all images, and a sentence if they differ."""
    largest = (max(height for height, _ in sizes), max(width for _, width in sizes))
    if len(set(sizes)) == 1:
        return largest, None
    groups = []
    for height, width in sorted(set(sizes)):
        names = [path.name for path, size in zip(paths, sizes, strict=True) if size == (height, width)]
        groups.append(f"{height}x{width}: {some_names(names)}")
    return largest, (
        f"images differ in size (height x width; {'; '.join(groups)}); all are padded with white to "
        f"{largest[0]}x{largest[1]}"
    )
