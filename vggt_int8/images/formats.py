"""Which files count as images: every format that Pillow can read here, plugins included, with advice for others.

Excluded are entries of Pillow's list that it cannot open (PDF is only for saving), that it opens without its own
decoder (HDF5, GRIB, BUFR, WMF, MPEG), and PostScript, which Pillow passes to Ghostscript: no other program is ever
started, whatever a file claims to be.
"""

import importlib.util
import struct
import warnings
from pathlib import Path

from PIL import Image, TiffImagePlugin, TiffTags

from vggt_int8.placeholders import LOOKED_AT, placeholder

# The usual ones, named in errors; `image_suffixes` has all.
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_OPENED_AS = {"MPO": "JPEG"}  # formats that have suffixes of their own and are opened by another's reader
_NOT_PHOTOGRAPHS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
# Format -> module that registers it with Pillow when it is imported. A user who installed one wants it used.
_PLUGINS = {"HEIF": "pillow_heif.HeifImagePlugin", "JXL": "pillow_jxl"}

RAW_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dng", "erf", "gpr", "iiq", "kdc", "mef", "mos"),
        *("mrw", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "srw", "x3f"),
    )
)
_VIDEO_SUFFIXES = (".3gp", ".avi", ".insv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv")
_WORDS = {
    "heif": "HEIC/HEIF needs Pillow's plugin: `pip install 'vggt-int8[heif]'`, or `pip install pillow-heif`",
    "jxl": "JPEG XL needs Pillow's plugin: `pip install pillow-jxl-plugin`",
    "raw": "a camera's raw data: develop it to JPEG, or to TIFF or PNG of 8 or 16 bits",
    "video": "a video: `run` takes one by itself; else save its frames as pictures and pass these",
    "hdr": "high dynamic range without a known white: tone-map it to 8 or 16 bits",
    "postscript": "PostScript would start Ghostscript: convert it to PNG",
    "pdf": "a document: save its pictures as PNG",
}
_KINDS = {
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "heif"),
    ".jxl": "jxl",
    **dict.fromkeys(RAW_SUFFIXES, "raw"),
    **dict.fromkeys(_VIDEO_SUFFIXES, "video"),
    **dict.fromkeys((".exr", ".hdr"), "hdr"),
    **dict.fromkeys((".eps", ".ps"), "postscript"),
    ".pdf": "pdf",
}


def readable_formats() -> list[str]:
    """Pillow's names of the formats that are read, in the order in which Pillow tries them."""
    Image.init()
    for name, module in _PLUGINS.items():
        if name not in Image.OPEN and importlib.util.find_spec(module.partition(".")[0]) is not None:
            importlib.import_module(module)
    return [name for name in Image.ID if name in Image.OPEN and name not in _NOT_PHOTOGRAPHS]


def image_suffixes() -> frozenset[str]:
    """Suffixes in lower case, with the dot, of all files that count as images, those of registered plugins included."""
    formats = set(readable_formats())
    registered = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in registered if _OPENED_AS.get(name, name) in formats) - RAW_SUFFIXES


def words_for(suffix: str) -> str | None:
    """What to do about files of a suffix that is not read; None where there is nothing to say."""
    kind = _KINDS.get(suffix.lower())
    return None if kind is None else _WORDS[kind]


def is_misnamed(path: Path) -> bool:
    """Whether a file named for a plugin's format (.heic, .jxl) is a JPEG or PNG: some programs rename alone."""
    if _KINDS.get(path.suffix.lower()) not in ("heif", "jxl"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(8).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
    except OSError:  # such a file is named by its suffix
        return False


def why_unreadable(path: Path) -> str:
    """What a file is that Pillow could not identify, judged by its first bytes and its name; follows its path."""
    with path.open("rb") as file:
        start = file.read(65536)
    if kind := _kind_of(start) or _KINDS.get(path.suffix.lower()):
        return f"cannot be read: {_WORDS[kind]}"
    if start.startswith(b"\xff\xd8") and (bits := _jpeg_bits(start)) not in (None, 8):
        return f"is a JPEG of {bits} bits, which Pillow's libjpeg does not read: convert it to PNG or TIFF of 16 bits"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return about_tiff(path)
    if instead := placeholder(start[:LOOKED_AT], "picture"):
        return f"is {instead}"
    if b"<svg" in start[:LOOKED_AT]:
        return "is a drawing (SVG), not a picture of pixels: convert it to PNG"
    return (
        "is not an image that Pillow can read (other format, or a damaged header): "
        "remove it, or convert it to JPEG or PNG"
    )


def _kind_of(start: bytes) -> str | None:
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"):
            return "heif"
        if brand == b"crx ":
            return "raw"
        return None if brand in (b"avif", b"avis") else "video"
    magic = {
        b"\xff\x0a": "jxl",
        b"\0\0\0\x0cJXL ": "jxl",
        b"\x76\x2f\x31\x01": "hdr",
        b"#?RADIANCE": "hdr",
        b"%!PS": "postscript",
        b"\xc5\xd0\xd3\xc6": "postscript",
        b"%PDF": "pdf",
    }
    return next((kind for prefix, kind in magic.items() if start.startswith(prefix)), None)


def about_tiff(path: Path) -> str:
    """The tags that decide whether Pillow can read it; follows its path."""
    shown = (258, 277, 284, 339, 262, 259)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of what it finds cut off
            directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
        tags = {TiffTags.lookup(tag).name: directory[tag] for tag in shown if tag in directory}
    except (Warning, OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        tags = {}
    if "BitsPerSample" not in tags:
        return "is a damaged TIFF: its table of contents cannot be read"
    values = (
        f"{name} {'/'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in tags.items()
    )
    return f"is a TIFF that Pillow does not read ({', '.join(values)}): convert it to PNG of 8 or 16 bits"


def _jpeg_bits(start: bytes) -> int | None:
    """Bits of a sample from a JPEG's frame header; None if it is not among the first bytes."""
    at = 2
    while at + 5 <= len(start) and start[at] == 0xFF:
        marker, length = start[at + 1], int.from_bytes(start[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return start[at + 4]
        at += 2 + length
    return None
