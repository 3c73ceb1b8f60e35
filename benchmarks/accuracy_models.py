"""The models that the table of accuracy is about: a floating-point model, and what makes it harder to quantize.

A kind is "plain", "channels:SEED" (`with_outliers`: outlier channels, to the last bit the same function) or
"tokens:SEED" (`with_outlier_tokens`: outlier tokens and inputs of fc2, nearly the same function). Each is saved as an
ordinary checkpoint in fp32, so that every command takes it: `vggt-int8 eval`, `sensitivity`, `qat`.
"""

import copy
from pathlib import Path

import torch

from vggt_int8 import VGGTInt8
from vggt_int8.eval.outlier_tokens import with_outlier_tokens
from vggt_int8.eval.outliers import with_outliers
from vggt_int8.scorecard.data import RenderedScenes

MAKERS = ("channels", "tokens")
SCENES = 4  # of the split "free", on which special tokens are told from patches: 32 frames


def check_kind(kind: str) -> None:
    """Raise ValueError, naming it, for a kind that there is not."""
    maker, _, seed = kind.partition(":")
    if kind != "plain" and not (maker in MAKERS and seed.isdecimal()):
        raise ValueError(f"{kind!r} is no kind of model: plain, channels:SEED or tokens:SEED")


def folder_of(kind: str, out: Path) -> Path:
    return out / "models" / kind.replace(":", "_")


def save_kinds(source: str, kinds: list[str], out: Path, size: tuple[int, int]) -> None:
    """Write those of `kinds` that are not there yet, made of the model `source`. size: (H, W) of images."""
    missing = [kind for kind in kinds if not (folder_of(kind, out) / "config.json").is_file()]
    if not missing:
        return
    plain = VGGTInt8.from_pretrained(source, dtype=torch.float32).eval()
    free = RenderedScenes(SCENES, 8, size, "free", folder=out / "scenes")
    for kind in missing:
        maker, _, seed = kind.partition(":")
        model = copy.deepcopy(plain)
        if maker == "channels":
            model = with_outliers(plain, int(seed))
        elif maker == "tokens":
            model = with_outlier_tokens(plain, int(seed), (scene.images for scene in free))
        model.save_pretrained(folder_of(kind, out))
