"""Put a finished save in its place, so that what was there before is whole until then."""

from pathlib import Path

_WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def move_into_place(temporary: Path, target: Path) -> None:
    """Rename the files of a finished save into `target`, weights first, and remove the weights that were there."""
    old = {path.name for pattern in _WEIGHT_FILES for path in target.glob(pattern)}
    new = sorted(temporary.iterdir(), key=lambda path: path.suffix == ".json")
    mode = (temporary / "config.json").stat().st_mode  # that of any new file; safetensors lets only the owner read
    for path in new:
        path.chmod(mode)
        path.replace(target / path.name)
    for name in old - {path.name for path in new}:
        (target / name).unlink()
