"""Checkpoints of a run in small files: fp32 weights, and the optimizers' moments in 8 bits.

A folder of safetensors shards of at most 15 MiB (for tools that limit the size of a file) and `trainer.json` with the
step and the whole configuration. The moments are stored as float8 (e4m3) with one scale per row: the first moment has a
memory of twenty steps, and the square root of the second determines step sizes, for which a few percent do not matter.
That is 6 bytes per parameter instead of 12 with AdamW, 5 instead of 8 with Muon. A root that would round to zero
becomes the smallest float8 instead, since a zero would make the next step huge. For bit-exact resumption, `exact`
stores moments in fp32.

A kill during a save leaves the previous checkpoint, if necessary after `find_checkpoint`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Muon, Optimizer

from vggt_int8.files import staged_folder, sweep
from vggt_int8.plain_data import shown
from vggt_int8.training.config import TrainingConfig, config_from_table

SHARD_BYTES = 15 * 2**20
FORMAT_VERSION = 1
MOMENTS = {"exp_avg", "momentum_buffer"}  # names of the first moment, AdamW's and Muon's
FLOAT8_MAX = torch.finfo(torch.float8_e4m3fn).max
FLOAT8_LEAST = 2.0**-9


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    facts: dict[str, Any],
    *,
    exact: bool = False,
) -> None:
    """Write `folder` anew.

    facts: JSON-ready: the step, the configuration, and whatever else the run has to remember.
    exact: moments in fp32.

    Raises ValueError if a weight is not finite: a good checkpoint is never replaced by a broken one, nor are files that
    belong to no checkpoint.
    """
    tensors: dict[str, Tensor] = {}
    states = _states(optimizers)
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name} is not finite: nothing is saved, the last checkpoint stays")
        tensors[f"weight.{name}"] = parameter.detach().float().cpu()
        state = states.get(parameter, {})
        if exact:
            moments = {key: value for key, value in state.items() if key in (*MOMENTS, "exp_avg_sq")}
            tensors |= {f"{key}.{name}": value.detach().float().cpu() for key, value in moments.items()}
            continue
        if first := MOMENTS & state.keys():
            _pack(tensors, f"first.{name}", state[first.pop()], keep_positive=False)
        if "exp_avg_sq" in state:
            _pack(tensors, f"root_second.{name}", state["exp_avg_sq"].sqrt(), keep_positive=True)
    shards = _in_shards(tensors)
    names = _shard_names(len(shards))
    facts = {"format_version": FORMAT_VERSION, "shards": len(shards), **facts}
    sweep(folder)
    old = owned_files(folder) if folder.exists() else []
    entries = [*sorted({*old, *names} - {"trainer.json"}), "trainer.json"]
    with staged_folder(folder, entries=entries, overwrite=True, owned=owned_files) as staging:
        for name, shard in zip(names, shards, strict=True):
            save_file(shard, staging / name)
        (staging / "trainer.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def least_bytes(model: nn.Module, *, exact: bool = False) -> int:
    """A lower bound on the size of a run's checkpoint: the weights, and one moment of those that are trained."""
    return sum(p.numel() * (4 + p.requires_grad * (4 if exact else 1)) for p in model.parameters())


def find_checkpoint(accelerator: Accelerator, folder: Path) -> bool:
    """Whether there is one, after completing a save that a kill has interrupted. All processes must call this."""
    if accelerator.is_main_process:
        sweep(folder)
    accelerator.wait_for_everyone()
    return folder.exists()


def owned_files(folder: Path) -> list[str]:
    """The files of a checkpoint. Raises as `read_facts` does."""
    return [*_shard_names(read_facts(folder)["shards"]), "trainer.json"]


def _shard_names(count: int) -> list[str]:
    return [f"state-{index:02}-of-{count:02}.safetensors" for index in range(1, count + 1)]


def read_facts(folder: Path) -> dict[str, Any]:
    """`trainer.json` of a checkpoint. Raises FileNotFoundError or ValueError with the folder's name."""
    path = folder / "trainer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no checkpoint: trainer.json is missing")
    try:
        facts: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {shown(str(error))}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged: it holds {shown(facts)}, not the facts of a checkpoint")
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {shown(facts.get('format_version'))}; this version reads {FORMAT_VERSION}"
        )
    for key, most in (("step", 2**53), ("shards", 10**5)):
        if type(facts.get(key)) is not int or not 0 <= facts[key] <= most:
            raise ValueError(f"{path} is damaged: its {key} is {shown(facts.get(key))}, not a number of them")
    seconds = facts.get("seconds", 0)
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e15:
        raise ValueError(f"{path} is damaged: its seconds is {shown(seconds)}, not a time")
    return facts


def read_config(folder: Path) -> TrainingConfig:
    """The configuration of the run that wrote a checkpoint. Raises as `read_facts` does."""
    return config_in(read_facts(folder), folder)


def config_in(facts: dict[str, Any], folder: Path) -> TrainingConfig:
    """The configuration among the facts of a checkpoint in `folder`. Raises ValueError if there is none."""
    table = facts.get("config")
    if not isinstance(table, dict):
        raise ValueError(f"{folder / 'trainer.json'} is damaged: its config is {shown(table)}, not a table")
    try:
        return config_from_table(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'trainer.json'} has a config that this version cannot use: {error}") from error


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer] = ()) -> dict[str, Any]:
    """Fill the model, and the optimizers if given, in place; returns the facts.

    Raises ValueError, changing nothing, if the checkpoint is of another model or other optimizers, or corrupted.
    """
    facts = read_facts(folder)
    tensors = _read_shards(folder, facts["shards"])
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    saved = {name.removeprefix("weight.") for name in tensors if name.startswith("weight.")}
    if saved != set(parameters):
        raise ValueError(
            f"{folder} does not fit this model: it lacks {sorted(set(parameters) - saved)[:3]} "
            f"and has {sorted(saved - set(parameters))[:3]} too many"
        )
    for name, parameter in parameters.items():
        weight = tensors[f"weight.{name}"]
        if weight.shape != parameter.shape:
            raise ValueError(f"{folder}: {name} is {tuple(weight.shape)}, the model's {tuple(parameter.shape)}")
        if weight.dtype != torch.float32 or not weight.isfinite().all():
            raise ValueError(f"{folder} is damaged: {name} holds something else than finite numbers in fp32")
    states: list[dict[Tensor, dict[str, Any]]] = [{} for _ in optimizers]
    for optimizer, state in zip(optimizers, states, strict=True):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name = names[parameter]
            if any(f"{key}.{name}" in tensors for key in ("first", *MOMENTS)):
                state[parameter] = _state(optimizer, parameter, tensors, name, facts["step"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.state.update(state)
    return facts


def _states(optimizers: Sequence[Optimizer]) -> dict[Tensor, dict[str, Any]]:
    return {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}


def _state(optimizer: Optimizer, parameter: Tensor, tensors: dict[str, Tensor], name: str, step: int) -> dict[str, Any]:
    """The optimizer's state for a parameter."""
    second = next((key for key in ("root_second", "exp_avg_sq") if f"{key}.{name}" in tensors), None)
    if isinstance(optimizer, Muon) != (second is None):
        raise ValueError(f"the saved moments of {name} are not {type(optimizer).__name__}'s: [optimizer] differs")

    def moment(value: Tensor) -> Tensor:
        if value.shape != parameter.shape or not value.isfinite().all():
            raise ValueError(f"the saved moments of {name} are damaged")
        # In its memory layout, as fused optimizers require.
        return torch.empty_like(parameter, requires_grad=False).copy_(value)

    exact = [tensors[f"{key}.{name}"] for key in MOMENTS if f"{key}.{name}" in tensors]
    first = moment(exact[0] if exact else _unpack(tensors, f"first.{name}"))
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": first}
    # Fused and capturable optimizers keep the step count beside the parameter, others on the CPU.
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return {
        "step": torch.tensor(float(step), device=parameter.device if on_device else "cpu"),
        "exp_avg": first,
        "exp_avg_sq": moment(
            tensors[f"{second}.{name}"] if second == "exp_avg_sq" else _unpack(tensors, f"{second}.{name}").square()
        ),
    }


def _pack(tensors: dict[str, Tensor], name: str, value: Tensor, keep_positive: bool) -> None:
    rows = value.detach().float().reshape(value.shape[0], -1) if value.dim() > 1 else value.detach().float()[None]
    scale = rows.abs().amax(dim=1, keepdim=True) / FLOAT8_MAX
    codes = rows / scale.clamp_min(torch.finfo(torch.float32).tiny)
    if keep_positive:
        codes = codes.clamp_min(FLOAT8_LEAST)
    tensors[name] = codes.clamp(-FLOAT8_MAX, FLOAT8_MAX).reshape(value.shape).to(torch.float8_e4m3fn).cpu()
    tensors[f"{name}.scale"] = scale.cpu()


def _unpack(tensors: dict[str, Tensor], name: str) -> Tensor:
    codes, scale = tensors[name].float(), tensors.get(f"{name}.scale")
    if scale is None or scale.dim() != 2 or not len(scale) or codes.numel() % len(scale):
        raise ValueError(f"the saved moments {name} are damaged: they have no scale for each row")
    rows = codes.reshape(len(scale), -1) * scale
    return rows.reshape(codes.shape)


def _in_shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() + 256  # 256: its entry in the header
        if used + size > SHARD_BYTES and shards[-1]:
            shards.append({})
            used = 0
        shards[-1][name] = tensor.contiguous()
        used += size
    return shards


def _read_shards(folder: Path, count: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in _shard_names(count):
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is incomplete: {path.name} is missing")
        try:
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return tensors
