"""Which folders and videos are scenes, and what tells one from its later self."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vggt_int8.images import find_images
from vggt_int8.images.formats import image_suffixes
from vggt_int8.images.names import natural_key, portable_name
from vggt_int8.video.names import is_video

INSIDE = "images"  # where COLMAP, nerfstudio and others keep them


@dataclass(frozen=True)
class SceneFolder:
    """name: of the folder or video, and of its results. key: a file's name that stands for it. images: what is read."""

    name: str
    key: str
    images: Path

    @property
    def is_video(self) -> bool:
        return is_video(self.images) and not self.images.is_dir()

    def paths(self) -> list[Path]:
        """The image files. Raises as `find_images`, and warns as it does."""
        return find_images(self.images)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed or changed; by names, sizes and times, without reading them."""
        total = hashlib.sha256()
        try:
            entries = [self.images] if self.is_video else sorted(self.images.iterdir(), key=lambda path: path.name)
            for entry in entries:
                status = entry.stat()
                total.update(f"{portable_name(entry.name)} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError as error:  # what cannot be read is a state, too, and told when it is read
            total.update(str(error).encode())
        return total.hexdigest()[:16]


def find_scenes(folder: Path, inside: str | None = None) -> list[SceneFolder]:
    """One scene for each folder and each video in `folder` that is not hidden, in natural order. A link that leads
    nowhere is one that fails: what it should lead to may be on a disk that is not mounted.

    inside: the folder in each scene that holds its images; by default the scene's own folder, or "images" in it if
    there is one. Raises NotADirectoryError or FileNotFoundError, and ValueError for a folder without either.
    """
    if not folder.is_dir():
        kind = NotADirectoryError if folder.exists() else FileNotFoundError
        raise kind(f"{folder} is {'a file' if folder.exists() else 'not there'}: give a folder with one folder a scene")
    below = sorted((path for path in folder.iterdir() if _may_be_scene(path)), key=natural_key)
    found = [_scene(path, inside) for path in below if not path.name.startswith(".")]
    if not found:
        raise ValueError(
            f"{folder} holds no folders and no videos: `batch` takes one a scene (`run` takes a single scene)"
        )
    return found


def loose_images(folder: Path) -> list[str]:
    """Names of images that lie in `folder` itself, in no scene."""
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in image_suffixes() and path.is_file())


def _may_be_scene(path: Path) -> bool:
    return path.is_dir() or is_video(path) or (path.is_symlink() and not path.exists())


def _scene(path: Path, inside: str | None) -> SceneFolder:
    images = path
    if path.is_dir():
        images = path / inside if inside is not None else path / INSIDE if (path / INSIDE).is_dir() else path
    safe = re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII)[:60].lstrip(".")
    return SceneFolder(path.name, f"{safe}-{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}", images)
