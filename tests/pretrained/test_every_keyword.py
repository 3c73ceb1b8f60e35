"""Every keyword that transformers takes when it loads or saves: it does what it says here, or is refused by name."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from vggt_int8 import VGGT, CheckpointError, VGGTConfig, VGGTInt8
from vggt_int8.model.keywords import HUB_KEYWORDS

CLASSES = pytest.mark.parametrize("network", [VGGTInt8, VGGT], ids=lambda network: network.__name__)


def keywords_of(method: Callable[..., Any]) -> set[str]:
    """Of a method of transformers: those that it names, and those that it takes out of its `**kwargs`."""
    named = {name for name, how in inspect.signature(method).parameters.items() if how.kind is not how.VAR_KEYWORD}
    source = inspect.getsource(method)
    taken = re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', source) + re.findall(r'"(\w+)" in kwargs', source)
    return (named | set(taken)) - {"self", "pretrained_model_name_or_path", "model_args", "save_directory"}


# keyword -> a value that somebody might pass
REFUSED_AT_LOADING: dict[str, Any] = {
    "adapter_kwargs": {"revision": "main"},
    "adapter_name": "mine",
    "allow_all_kernels": True,
    "attn_implementation": "flash_attention_2",
    "device_mesh": object(),
    "distributed_config": {"tp_size": 2},
    "experts_implementation": "grouped_mm",
    "fusion_config": {"patch_embeddings": True},
    "generation_config": {"max_length": 5},
    "gguf_file": "model.gguf",
    "ignore_mismatched_sizes": True,
    "kernel_config": object(),
    "key_mapping": {"^module.": ""},
    "proxies": {"https": "127.0.0.1:8080"},
    "quantization_config": BitsAndBytesConfig(load_in_8bit=True),
    "state_dict": {"a": torch.zeros(1)},
    "tp_plan": "auto",
    "tp_size": 2,
    "trust_remote_code": True,
    "use_kernels": True,
    "use_safetensors": False,
    "weights_only": False,
}
WORKS_AT_LOADING = {
    *HUB_KEYWORDS,  # tests/saves/test_hub.py, tests/cli/test_hub.py
    *("config", "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers"),
    *("variant", "output_loading_info", "disable_mmap", "tqdm_class"),
}
MARKS = {"_commit_hash", "_from_auto", "_from_pipeline"}  # which transformers leaves for itself

REFUSED_AT_SAVING: dict[str, Any] = {
    "variant": "fp16",
    "save_original_format": False,
    "save_peft_format": False,
    "distributed_checkpoint": True,
    "commit_message": "by itself",
    "create_pr": True,
    "repo_id": "owner/name",
    "commit_description": "why",
    "tags": ["int8"],
    "safe_serialization": False,
    "use_temp_dir": True,
}
WORKS_AT_SAVING = {"is_main_process", "state_dict", "push_to_hub", "max_shard_size", "token"}


def test_all_of_them_are_here() -> None:
    known = REFUSED_AT_LOADING.keys() | WORKS_AT_LOADING | MARKS
    assert keywords_of(PreTrainedModel.from_pretrained) <= known
    assert keywords_of(PreTrainedModel.save_pretrained) <= REFUSED_AT_SAVING.keys() | WORKS_AT_SAVING
    assert keywords_of(PreTrainedModel.push_to_hub) <= keywords_of(VGGTInt8.push_to_hub)


@CLASSES
@pytest.mark.parametrize("name", sorted(REFUSED_AT_LOADING))
def test_refused_before_anything_is_read(network: type[VGGT], name: str) -> None:
    with pytest.raises(TypeError, match=f"from_pretrained does not take {name}="):
        network.from_pretrained("./nothing is here", **{name: REFUSED_AT_LOADING[name]})


@CLASSES
@pytest.mark.parametrize("name", sorted(REFUSED_AT_SAVING))
def test_refused_before_anything_is_written(
    network: type[VGGT], tmp_path: Path, bare_sizes: dict[str, Any], name: str
) -> None:
    model = network(VGGTConfig(**bare_sizes))
    with pytest.raises((TypeError, CheckpointError), match=name):
        model.save_pretrained(tmp_path / "out", **{name: REFUSED_AT_SAVING[name]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@CLASSES
def test_what_loads_does_what_it_says(network: type[VGGT], tmp_path: Path, bare_checkpoint: Path) -> None:
    def load(**keywords: Any) -> Any:
        return network.from_pretrained(bare_checkpoint, **keywords)

    assert load(dtype="bfloat16").dtype == torch.bfloat16
    assert load(torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load(config=VGGTConfig.from_pretrained(bare_checkpoint, enable_depth=False)).depth_head is None
    model, info = load(output_loading_info=True)
    assert not info["missing_keys"]
    assert load(device_map="cpu", disable_mmap=True).device.type == "cpu"
    half = sum(p.numel() * p.element_size() for p in model.parameters()) // 2
    memory = {"max_memory": {"cpu": half}, "offload_folder": tmp_path / "offload", "offload_buffers": True}
    spread = load(device_map="auto", **memory)
    assert "disk" in spread.hf_device_map.values()
    with pytest.raises(CheckpointError, match=r"model\.fp16\.safetensors"):
        load(variant="fp16")
    with pytest.raises(CheckpointError, match="inner"):
        load(subfolder="inner")
    (tmp_path / "inner").symlink_to(bare_checkpoint)
    assert network.from_pretrained(tmp_path, subfolder="inner") is not None
