"""Ways to damage a saved checkpoint: each makes a `Change`, which is done to its folder in place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
Weights = dict[str, torch.Tensor]
Change = Callable[[Path], None]


def header(file: Path) -> dict[str, str]:
    """Format and id of the save."""
    with safe_open(file, framework="pt") as handle:
        return handle.metadata()


def weights(change: Callable[[Weights], Any]) -> Change:
    """A change of the tensors in model.safetensors."""

    def apply(folder: Path) -> None:
        tensors, metadata = load_file(folder / "model.safetensors"), header(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata=metadata)

    return apply


def put(name: str, index: int, value: float) -> Change:
    def change(tensors: Weights) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[index] = value

    return weights(change)


def retype(name: str, dtype: torch.dtype) -> Change:
    return weights(lambda tensors: tensors.update({name: tensors[name].to(dtype)}))


def config(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of config.json."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return apply


def recipe_key(key: str, value: Any) -> Change:
    return config(lambda data: data["quantization_config"]["recipe"].update({key: value}))


def cut(part: float) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])

    return apply


def overwrite(content: bytes, file: str = "model.safetensors") -> Change:
    return lambda folder: (folder / file).write_bytes(content) and None


def pickled(content: Any) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(content, folder / "pytorch_model.bin")
        config(lambda data: data.pop("save"))(folder)

    return apply


def shard(folder: Path) -> None:
    """Split model.safetensors into three files with an index."""
    tensors, metadata = load_file(folder / "model.safetensors"), header(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where = {}
    for i in range(3):
        file = f"model-0000{i + 1}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[i::3]}, folder / file, metadata=metadata)
        where.update(dict.fromkeys(names[i::3], file))
    index = {"metadata": {"total_size": 1, "save_id": metadata["save_id"]}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))


def shard_and(change: Callable[[Path], Any]) -> Change:
    def apply(folder: Path) -> None:
        shard(folder)
        change(folder)

    return apply


def second(folder: Path) -> Path:
    return folder / "model-00002-of-00003.safetensors"


def repeat(folder: Path) -> None:
    """Put a tensor of the first file into the second as well, with other values."""
    name, tensor = next(iter(load_file(folder / "model-00001-of-00003.safetensors").items()))
    tensors, metadata = {**load_file(second(folder)), name: torch.zeros_like(tensor)}, header(second(folder))
    save_file(tensors, second(folder), metadata=metadata)
