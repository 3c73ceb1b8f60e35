"""What is measured already: a file of JSON lines, of which each is one change of one scene, added when it is finished.

The first line says what was measured: model, recipe, images, options. A file that says something else is refused, and
never mixed with new numbers. A line that a kill has cut off is as if it had not been written.
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
    """The file holds measurements of something else than what is asked for."""


class Record:
    """path: the file, which is made with the first line. identity: JSON-ready; see the module's text."""

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Read what is there, or begin anew if nothing is, or with `overwrite`.

        Raises `OtherMeasurement`, saying what differs, for a file of another identity or one that is damaged.
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
            raise OtherMeasurement(f"{path} is of another measurement: {first_difference(found, identity)}. {WAY_OUT}")
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
        """Of each scene, in order."""
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
