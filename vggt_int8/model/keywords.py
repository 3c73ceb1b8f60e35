"""Keyword arguments of `from_pretrained`: what is passed to transformers, and why the rest is refused.

transformers takes some forty keywords, silently drops old ones, and lets others override what the checks of a
checkpoint rely on. This module decides on each: a keyword that works as documented passes; one that would be ignored,
or would load something else than the checkpoint specifies, is refused before anything is read, with advice.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from vggt_int8.model.network_config import NetworkConfig

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# Work as transformers documents them, quantized or not.
_PASSED = {
    *HUB_KEYWORDS,
    *("config", "dtype", "torch_dtype", "device_map", "max_memory", "offload_folder", "offload_buffers"),
    *("variant", "output_loading_info", "disable_mmap", "tqdm_class"),
    *("_from_auto", "_from_pipeline", "_commit_hash"),  # set by AutoModel
}

_NO_KERNELS = "the network has kernels of its own and takes none from the Hub; choose by backend="
_NO_PLAN = "the network is not split over processes; device_map= puts parts of it on several GPUs"
_OWN_ATTENTION = "attention is the network's own, the fastest of the device; there is nothing to choose"
_NO_ADAPTER = "adapters are not loaded with the network"
_ONLY_SAFE = "no code of a checkpoint is ever run, so there is nothing to trust"
_RECIPE = "INT8 is asked for by recipe=, such as recipe='int8_dynamic' (or 'llm_int8' for bitsandbytes)"
_CHECKED = "names and shapes of a checkpoint must fit the model; what does not fit is an error"
_OLD = "transformers no longer reads it"

# keyword -> (values that request the default behavior, why any other value is refused)
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((None,), _RECIPE),
    "load_in_8bit": ((None, False), _RECIPE),
    "load_in_4bit": ((None, False), "there is no 4-bit arithmetic here; " + _RECIPE),
    "ignore_mismatched_sizes": ((None, False), _CHECKED),
    "strict": ((None, True), _CHECKED),
    "key_mapping": ((None,), _CHECKED + ". Prefixes such as 'module.' are taken off by themselves"),
    "state_dict": ((None,), "save the tensors to a .safetensors file and pass its path, or use load_state_dict()"),
    "weights_only": ((None, True), "pickles that hold more than tensors can run code, so they are never opened"),
    "use_safetensors": ((None, True), "safetensors are read where there are any, and else pickles of tensors alone"),
    "trust_remote_code": ((None, False), _ONLY_SAFE),
    "code_revision": ((None,), _ONLY_SAFE),
    "attn_implementation": ((None,), _OWN_ATTENTION),
    "experts_implementation": ((None,), "the network has no experts"),
    "use_flash_attention_2": ((None, False), _OWN_ATTENTION),
    "use_kernels": ((None, False), _NO_KERNELS),
    "kernel_config": ((None,), _NO_KERNELS),
    "allow_all_kernels": ((None, False), _NO_KERNELS),
    "fusion_config": ((None,), _NO_KERNELS),
    "tp_plan": ((None,), _NO_PLAN),
    "tp_size": ((None,), _NO_PLAN),
    "device_mesh": ((None,), _NO_PLAN),
    "distributed_config": ((None,), _NO_PLAN),
    "gguf_file": ((None,), "there is no VGGT in GGUF; pass safetensors"),
    "adapter_kwargs": ((None, {}), _NO_ADAPTER),  # AutoModel of some versions passes empty ones
    "adapter_name": ((None, "default"), _NO_ADAPTER),
    "generation_config": ((None,), "the network generates nothing"),
    "low_cpu_mem_usage": ((None, True), "weights are streamed in any case; " + _OLD),
    "from_tf": ((None, False), _OLD),
    "from_flax": ((None, False), _OLD),
    "mirror": ((None,), _OLD),
    "proxies": ((None,), "huggingface_hub ignores it; the variables HTTP_PROXY and HTTPS_PROXY are read"),
    "resume_download": ((None, True), "downloads are resumed in any case; " + _OLD),
    "use_auth_token": ((None,), "its name is token= now"),
    "offload_state_dict": ((None, True), _OLD),
    "_fast_init": ((None, True), _OLD),
    "device": ((None,), "where the model goes is said by device_map=, such as device_map='cuda'"),
}


def check_keywords(
    keywords: Mapping[str, Any], config: type[NetworkConfig], own: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The keywords to pass on, without those that request the default behavior.

    config: the config class, whose fields pass.
    own: names that the caller handles itself, for spelling suggestions.

    Raises TypeError, naming the keyword, its value and what to do instead.
    """
    fields = set(config.__annotations__) - {"model_type"}
    passed = {}
    for name, value in keywords.items():
        if name in _PASSED or name in fields:
            passed[name] = value
        elif name in _REFUSED:
            harmless, reason = _REFUSED[name]
            if not any(type(value) is type(allowed) and value == allowed for allowed in harmless):
                raise TypeError(f"from_pretrained does not take {name}={_shown(value)}: {reason}")
        else:
            known = sorted({*own, *fields, *(key for key in _PASSED if not key.startswith("_"))})
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}=?" if close else f"; it takes {', '.join(known)}"
            raise TypeError(f"from_pretrained does not know {name}= (value {_shown(value)}){hint}")
    return passed


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"<{type(value).__name__}>"
