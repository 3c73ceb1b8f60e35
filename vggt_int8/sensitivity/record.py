"""Finished measurements in a JSON Lines file: one line per change and scene, appended when it is measured.

The first line identifies the measurement: model, recipe, images and options. A file with a different identity is
rejected, so results are never mixed. An incomplete last line after a kill is ignored.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggt_int8.files import append_json_line
from vggt_int8.plain_data import first_difference, shown
from vggt_int8.sensitivity.measures import MEASURES, Errors

WAY_OUT = "choose another --out, or --overwrite to measure anew"


class OtherMeasurement(ValueError):
    """The file belongs to a different measurement."""


class Record:
    """path: the file, created together with its first line. identity: JSON-ready; see the module docstring."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Read the existing file, or start a new one if there is none or if `overwrite` is set.

        Raises `OtherMeasurement`, naming the difference, for a file with another identity or a damaged file.
        """
        self.path = path
        self._found: dict[tuple[int, str, str], Errors] = {}
        if overwrite:
            path.unlink(missing_ok=True)
        if not path.exists():
            append_json_line(path, {"identity": identity})
            return
        lines = _documents(path)
        if not lines or not isinstance(lines[0].get("identity"), dict):
            raise OtherMeasurement(f"{path} does not begin with what was measured, so it is damaged: {WAY_OUT}")
        if (found := lines[0]["identity"]) != json.loads(json.dumps(identity)):
            raise OtherMeasurement(f"{path} is of another measurement: {first_difference(found, identity)}; {WAY_OUT}")
        for line in lines[1:]:
            try:
                key, errors = (line["scene"], line["unit"], line["choice"]), line["errors"]
                if not (isinstance(errors, dict) and all(map(_is_error, errors.items()))):
                    raise ValueError(shown(errors))
            except (KeyError, ValueError) as error:
                raise OtherMeasurement(f"{path} holds a line that is no measurement ({error}): {WAY_OUT}") from error
            self._found[key] = errors

    def has(self, scene: int, unit: str, choice: str) -> bool:
        return (scene, unit, choice) in self._found

    def write(self, scene: int, unit: str, choice: str, errors: Errors) -> None:
        """Raises FloatingPointError, naming the change, for errors that are not finite."""
        if not all(map(math.isfinite, errors.values())):
            raise FloatingPointError(f"{unit}, {choice}: on scene {scene} its errors are not finite: {errors}")
        append_json_line(self.path, {"scene": scene, "unit": unit, "choice": choice, "errors": errors})
        self._found[scene, unit, choice] = errors

    def errors(self, unit: str, choice: str, scenes: int) -> list[Errors]:
        """The errors of each scene, in order."""
        return [self._found[scene, unit, choice] for scene in range(scenes)]


def _documents(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            document = json.loads(line)
        except ValueError:  # cut off by a kill; or the end of the file
            continue
        if isinstance(document, dict):
            found.append(document)
    return found


def _is_error(entry: tuple[Any, Any]) -> bool:
    kind, value = entry
    return kind in MEASURES and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
