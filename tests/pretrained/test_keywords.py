"""Keywords of `from_pretrained`: refused by name, or they do what they say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, BitsAndBytesConfig

from vggt_int8 import VGGT, VGGTConfig, VGGTInt8
from vggt_int8.model.keywords import check_keywords

State = dict[str, Tensor]

REFUSED_KEYWORDS = [
    (
        {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
        "_config=<BitsAndBytesConfig>: .*recipe='int8_dyn",
    ),
    (
        {"quantization_config": {"quant_method": "vggt_int8"}, "recipe": "int8_dynamic"},
        "take quantization_config",
    ),
    ({"load_in_8bit": True}, "load_in_8bit=True: INT8 is asked for by recipe="),
    ({"load_in_4bit": True}, "no 4-bit arithmetic"),
    ({"ignore_mismatched_sizes": True}, "must fit the model"),
    ({"strict": False}, "must fit the model"),
    ({"key_mapping": {"^module.": ""}}, "key_mapping=.*taken off by themselves"),
    ({"state_dict": {}}, "state_dict=.*pass its path"),
    ({"use_safetensors": False}, "read where there are any"),
    ({"weights_only": False}, "weights_only=False.*never opened"),
    ({"trust_remote_code": True}, "no code of a checkpoint is ever run"),
    ({"attn_implementation": "flash_attention_2"}, "attention is the network's own"),
    ({"use_kernels": True}, "takes none from the Hub"),
    ({"kernel_config": object()}, "takes none from the Hub"),
    ({"fusion_config": {"patch_embeddings": True}}, "fusion_config="),
    ({"tp_plan": "auto"}, "device_map= puts parts"),
    ({"distributed_config": {}}, "distributed_config="),
    ({"gguf_file": "a.gguf"}, "no VGGT in GGUF"),
    ({"adapter_name": "mine"}, "adapters are not loaded"),
    ({"low_cpu_mem_usage": False}, "streamed in any case"),
    ({"device": "cuda"}, "device_map='cuda'"),
    ({"from_tf": True}, "no longer reads"),
    ({"recipee": "int8_dynamic"}, "does not know recipee=.*did you mean recipe="),
    ({"enable_trak": False}, "did you mean enable_track="),
    ({"devicemap": "cpu"}, "did you mean device_map="),
    ({"output_attentions": True}, "does not know output_attentions="),
    ({"dtype": "float7"}, "dtype is 'float7': choose torch.float16"),
    ({"dtype": torch.int8}, "dtype is torch.int8"),
    ({"dtype": {"": torch.float16}}, "one dtype holds for the whole network"),
    ({"dtype": "fp16", "torch_dtype": "bf16"}, "dtype='fp16' and torch_dtype='bf16' differ"),
    ({"config": 5}, "config is a int; pass a VGGTConfig"),
]


@pytest.mark.parametrize(("keywords", "message"), REFUSED_KEYWORDS, ids=[str(list(row[0])) for row in REFUSED_KEYWORDS])
def test_a_keyword_without_effect_is_refused_before_anything_is_read(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):  # not the error of a source that is not there
        VGGTInt8.from_pretrained("./nothing is here", **keywords)


def test_options_are_given_by_name(bare_checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="by name, such as recipe='int8_dynamic'"):
        VGGTInt8.from_pretrained(bare_checkpoint, "int8_dynamic")


@pytest.mark.parametrize(
    "keywords",
    [
        {"load_in_8bit": False, "quantization_config": None, "trust_remote_code": None, "low_cpu_mem_usage": True},
        {"attn_implementation": None, "adapter_kwargs": None, "state_dict": None, "weights_only": True},
    ],
)
def test_keywords_that_ask_for_what_happens_anyway_pass(keywords: dict[str, Any]) -> None:
    assert check_keywords(keywords, VGGTConfig) == {}


def test_keywords_that_pass_do_what_they_say(bare_checkpoint: Path) -> None:
    model, info = VGGTInt8.from_pretrained(bare_checkpoint, output_loading_info=True, dtype="bf16")  # type: ignore[misc]
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    own = VGGTConfig.from_pretrained(bare_checkpoint)
    model = VGGTInt8.from_pretrained(bare_checkpoint, config=own, enable_depth=False, use_safetensors=True)
    assert model.depth_head is None
    assert own.enable_depth, "the caller's object is left alone"


def test_the_same_holds_for_auto_model_and_the_plain_network(bare_checkpoint: Path, bare_int8: Path) -> None:
    for keywords in ({"load_in_8bit": True}, {"attn_implementation": "a/kernel"}, {"output_hidden_states": True}):
        for load in (AutoModel.from_pretrained, VGGT.from_pretrained):
            with pytest.raises(TypeError, match=next(iter(keywords))):
                load(bare_checkpoint, **keywords)
    with pytest.raises(TypeError, match="quantization_config="):
        AutoModel.from_pretrained(bare_checkpoint, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ValueError, match=r"is quantized: load it with VGGTInt8\.from_pretrained"):
        VGGT.from_pretrained(bare_int8)
    with pytest.raises(TypeError, match="takes recipe= and backend="):
        VGGT.from_pretrained(bare_checkpoint, recipe="int8_dynamic")
    assert type(VGGT.from_pretrained(bare_checkpoint, enable_depth=False)) is VGGT


def test_the_plain_network_tells_of_weights_that_do_not_fit(tmp_path: Path, bare_checkpoint: Path) -> None:
    shutil.copytree(bare_checkpoint, tmp_path / "bad")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    del tensors["aggregator.camera_token"]
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "bad" / "config.json").read_text())
    del config["save"]  # of the tensors that were there
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the network: \['aggregator\.camera_token'\]"):
        VGGT.from_pretrained(tmp_path / "bad")
