"""A model's predictions for each scene, on disk: exported once, scored any number of times.

    OUT/predictions/ROW/row.json         what made them: the identity, and facts of the row
    OUT/predictions/ROW/0000.safetensors pose_enc [S, 9], depth [S, H, W], world_points [S, H, W, 3], fp32

Each file holds a digest of the identity: model, recipe, backend, dtype, data, version of the package. Files of another
identity are stale; they are refused and never scored. An interrupted run resumes where it stopped.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vggt_int8.files import sweep, write_json, write_whole
from vggt_int8.plain_data import first_difference, shown
from vggt_int8.scorecard.data import TrueScene

OUTPUTS = ("pose_enc", "depth", "world_points")
_SCENE = re.compile(r"[0-9]{4,}\.safetensors")


class StaleError(ValueError):
    """Predictions on disk were made by something else than what is requested."""


@dataclass(frozen=True)
class Predictions:
    """One row's folder. label: how the row is called; identity: JSON-ready, see above."""

    folder: Path
    label: str
    identity: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def check(self) -> None:
        """Raise StaleError, saying what differs and what to do, if the folder has predictions of another identity;
        FileExistsError if it has something else.
        """
        path = self.folder / "row.json"
        if self.folder.is_dir():
            sweep(path)  # of a kill while it was written first
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if not path.is_file():
            raise FileExistsError(f"{self.folder} holds files and no row.json, so it is not ours: choose another --out")
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            found, _ = whole["identity"], whole["facts"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StaleError(f"{path} is damaged ({shown(str(error))}): {_WAY_OUT}") from error
        if found != self.identity:
            what = first_difference(found, self.identity)
            raise StaleError(f"the predictions in {self.folder} are stale: {what}. {_WAY_OUT[0].upper()}{_WAY_OUT[1:]}")

    def clear(self) -> None:
        """Remove what this package wrote there, and nothing else."""
        for path in sorted(self.folder.glob("*")):
            if path.name == "row.json" or _SCENE.fullmatch(path.name):
                path.unlink()

    def begin(self) -> None:
        """Write whose predictions these are, before the first of them."""
        if not (self.folder / "row.json").is_file():
            self.write_facts({})

    def facts(self) -> dict[str, Any]:
        """What `write_facts` wrote."""
        facts: dict[str, Any] = json.loads((self.folder / "row.json").read_text(encoding="utf-8"))["facts"]
        return facts

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """JSON-ready facts of the row, kept beside its identity."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "row.json", {"label": self.label, "identity": self.identity, "facts": facts})

    def has(self, index: int) -> bool:
        """Whether the scene's predictions are there. Raises StaleError for those of another identity."""
        if not self._path(index).is_file():
            return False
        with self._open(index) as file:
            self._check_file(file, index)
        return True

    def write(self, index: int, outputs: Mapping[str, Tensor]) -> None:
        tensors = {name: outputs[name].float().cpu().contiguous() for name in OUTPUTS if name in outputs}
        write_whole(self._path(index), save(tensors, metadata={"identity": self.digest}))

    def read(self, index: int) -> dict[str, Tensor]:
        """The outputs for a scene, without a batch axis. Raises StaleError as `has`."""
        with self._open(index) as file:
            self._check_file(file, index)
            stored = set(file.keys())
            return {name: file.get_tensor(name) for name in OUTPUTS if name in stored}

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:04d}.safetensors"

    def _open(self, index: int) -> Any:
        try:
            return safe_open(self._path(index), "pt")
        except SafetensorError as error:
            raise StaleError(f"{self._path(index)} is damaged ({shown(str(error))}): {_WAY_OUT}") from error

    def _check_file(self, file: Any, index: int) -> None:
        if (file.metadata() or {}).get("identity") != self.digest:
            raise StaleError(f"{self._path(index)} is stale, made by another run: {_WAY_OUT}")


def bytes_of(scene: TrueScene) -> int:
    """What the predictions for a scene take on the disk, but for headers."""
    views, _, height, width = scene.images.shape
    return 4 * views * (9 + height * width * (1 + 3))


_WAY_OUT = "choose another --out, or --overwrite to make them anew"


def folder_name(label: str) -> str:
    """A label as the name of a folder: readable, and never the same for two labels."""
    safe = re.sub(r"[^\w.+-]+", "-", label).strip("-.")[-60:]
    return safe if safe == label else f"{safe}-{hashlib.sha256(label.encode('utf-8', 'replace')).hexdigest()[:8]}"
