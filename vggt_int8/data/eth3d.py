"""ETH3D's high-resolution training scenes: which archives there are, and how they get here.

Schöps et al., "A Multi-View Stereo Benchmark with High-Resolution Images and Multi-Camera Videos", CVPR 2017,
https://www.eth3d.net. Photographs of 24 megapixels, poses, depth and laser scans, one 7z archive for each kind of data
of a scene. Each archive holds a folder of the scene's name; all are unpacked beside one another:

    SCENE/images/dslr_images_undistorted/*.JPG      SCENE/dslr_calibration_undistorted/{cameras,images,points3D}.txt
    SCENE/images/dslr_images/*.JPG                  SCENE/dslr_calibration_jpg/{cameras,images,points3D}.txt
    SCENE/ground_truth_depth/dslr_images/*.JPG      float32, row by row, of the distorted camera; inf where unknown
    SCENE/masks_for_images/dslr_images/*.png        of the distorted images: 0, 1 where colours alone do not fit the
                                                    scan, 2 where the scan does not (what moved, what shines through)
    SCENE/dslr_scan_eval/{scan_alignment.mlp,*.ply} laser scans, and where each stands
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from vggt_int8.data.archive import ArchiveError, unpack
from vggt_int8.data.download import digest_of, download
from vggt_int8.files import write_json
from vggt_int8.plain_data import shown

SITE = "https://www.eth3d.net/data"
LICENCE = "CC BY-NC-SA 4.0: for research, not for sale, with its authors named (https://www.eth3d.net)"
SCENES = (
    *("courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground"),
    *("relief", "relief_2", "terrace", "terrains"),
)
# Kind of data -> archives. Depth belongs to the distorted cameras, whose calibration is in the archive of their images.
PARTS = {
    "images": ("dslr_undistorted",),
    "depth": ("dslr_depth", "dslr_jpg"),
    "masks": ("dslr_occlusion",),
    "scan": ("dslr_scan_eval",),
}
VIEWS = Path(__file__).with_name("eth3d_views.toml")
STATE = ".archives.json"  # below the target: archive -> its sha256, the files that it held, and whether it is kept
# Limits for the extracted size of one archive: in bytes, and as a multiple of the archive's size, which does not apply
# below `SMALL` bytes. The largest scans have a few GB, and depth has the highest compression ratio, since nine tenths
# of it are unknown.
MOST_BYTES, MOST_TIMES, SMALL = 64 << 30, 200, 1 << 30


@dataclass(frozen=True)
class Archive:
    """size, sha256: where they are known in advance. ETH3D publishes no hashes; the hash of the first download is
    stored.
    """

    scene: str
    kind: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return f"{self.scene}_{self.kind}.7z"


def archives(scenes: Sequence[str], parts: Sequence[str]) -> list[Archive]:
    """The archives of the scenes, in the order of the scenes, without duplicates. Raises ValueError for an unknown
    name.
    """
    for kind, names, known in (("scene", scenes, SCENES), ("part", parts, tuple(PARTS))):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"ETH3D has no {kind} {unknown[0]!r}: choose from {', '.join(known)}")
    kinds = dict.fromkeys(kind for part in parts for kind in PARTS[part])
    return [Archive(scene, kind) for scene in dict.fromkeys(scenes) for kind in kinds]


@cache
def _lists() -> dict[str, dict[str, list[int]]]:
    return tomllib.loads(VIEWS.read_text(encoding="utf-8"))


def listed_views(scene: str, views: int | None) -> list[str] | None:
    """Names of the images to use for `views` views of a scene; None if there is no list for that number."""
    numbers = _lists().get(scene, {}).get(f"views_{views}")
    return None if numbers is None else [f"DSC_{number:04d}.JPG" for number in numbers]


def fetch(
    wanted: Sequence[Archive],
    target: Path,
    *,
    site: str = SITE,
    keep: bool = False,
    on_bytes: Callable[[Archive, int, int], None] = lambda archive, done, total: None,
    on_wait: Callable[[Archive, str, float], None] = lambda archive, reason, seconds: None,
    on_unpack: Callable[[Archive], None] = lambda archive: None,
    pause: float = 1.0,
) -> list[Archive]:
    """Download and extract what is missing below `target`. Returns what was downloaded.

    An archive counts as present if all its files exist with the right sizes. keep: also keep the archives in `target`.
    Raises `DownloadError`, `ArchiveError` and OSError; earlier downloads are kept.
    """
    fetched = []
    for archive in wanted:
        state, place = _state(target), target / archive.name
        if _is_there(target, state.get(archive.name)):
            if not keep and state[archive.name].get("kept") is False:
                place.unlink(missing_ok=True)  # of a kill just before this
            continue
        known = archive.sha256 or state.get(archive.name, {}).get("sha256")

        if place.is_file():  # kept from before, or brought by hand
            digest = digest_of(place, known)
        else:
            digest = download(
                f"{site}/{archive.name}",
                place,
                size=archive.size,
                sha256=known,
                on_bytes=partial(on_bytes, archive),
                on_wait=partial(on_wait, archive),
                pause=pause,
            )
        on_unpack(archive)
        try:
            most = min(MOST_BYTES, max(SMALL, MOST_TIMES * place.stat().st_size))
            names = unpack(place, target, most_bytes=most, below=archive.scene)
        except ArchiveError as error:
            raise ArchiveError(f"{error}. Remove it, and the same command fetches it anew") from error
        files = {name: (target / name).stat().st_size for name in names}
        write_json(target / STATE, {**_state(target), archive.name: {"sha256": digest, "files": files, "kept": keep}})
        if not keep:
            place.unlink()
        fetched.append(archive)
    return fetched


def _state(target: Path) -> dict[str, Any]:
    path = target / STATE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it, and the archives are fetched anew") from error
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise ValueError(f"{path} is damaged ({shown(found)}): remove it, and the archives are fetched anew")
    return found


def _is_there(target: Path, entry: dict[str, Any] | None) -> bool:
    if entry is None or not isinstance(entry.get("files"), dict):
        return False
    return all((target / name).is_file() and (target / name).stat().st_size == n for name, n in entry["files"].items())
