"""Put a finished save in its place, so that what was there before is whole until then."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


@contextmanager
def saved_whole(target: Path) -> Iterator[Path]:
    """A folder in `target`, made if need be, to save into: its files take their places when the block ends.

    After an error `target` holds what it held before. Raises FileExistsError if it is a file.
    """
    target.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=target))
    try:
        yield temporary
        _move_into_place(temporary, target)
    finally:
        shutil.rmtree(temporary)


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename the files of a finished save into `target`, weights first, and remove the weights that were there."""
    old = {path.name for pattern in _WEIGHT_FILES for path in target.glob(pattern)}
    new = sorted(temporary.iterdir(), key=lambda path: path.suffix == ".json")
    mode = (temporary / "config.json").stat().st_mode  # that of any new file; safetensors lets only the owner read
    for path in new:
        path.chmod(mode)
        path.replace(target / path.name)
    for name in old - {path.name for path in new}:
        (target / name).unlink()
