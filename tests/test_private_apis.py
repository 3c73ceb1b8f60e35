"""Private names of other libraries that the package leans on: all are here, and all are there.

A new version of a library that drops one of them fails here first, by name. `docs/design.md` says what they are for.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

PACKAGE = Path(__file__).parents[1] / "vggt_int8"
# Where each name is found. `Module()` is any module: its tables are made with it.
USED = (
    *("torch._int_mm", "torch._dynamo", "torch._fused_sdp_choice"),
    *(f"torch._foreach_{name}" for name in ("add_", "copy_", "lerp", "lerp_", "mul_")),
    "torch.utils._python_dispatch.is_in_torch_dispatch_mode",
    "torch.utils._python_dispatch.is_traceable_wrapper_subclass",
    "torch.nn.modules.module._global_forward_hooks",
    "torch.nn.modules.module._global_forward_pre_hooks",
    *(f"torch.nn.Module()._{name}" for name in ("modules", "buffers")),
    *(f"torch.nn.Module()._forward_{name}" for name in ("hooks", "hooks_with_kwargs", "hooks_always_called")),
    *(f"torch.nn.Module()._forward_pre_{name}" for name in ("hooks", "hooks_with_kwargs")),
    *(f"torch.nn.Module()._{name}" for name in ("backward_hooks", "backward_pre_hooks", "is_full_backward_hook")),
    *(f"torch.nn.Module()._{name}" for name in ("state_dict_hooks", "state_dict_pre_hooks")),
    *(f"torch.nn.Module()._load_state_dict_{name}" for name in ("pre_hooks", "post_hooks")),
    "transformers.PreTrainedConfig()._attn_implementation",
    "transformers.PreTrainedModel._hf_peft_config_loaded",
)
OVERRIDDEN = (
    *("torch.nn.Module._apply", "torch.nn.Module._load_from_state_dict"),
    *(f"transformers.PreTrainedModel.{name}" for name in ("_supports_sdpa", "_no_split_modules", "_init_weights")),
    *(f"transformers.PreTrainedModel.{name}" for name in ("_load_pretrained_model", "_get_dtype_plan", "_from_config")),
    "transformers.PreTrainedModel.get_init_context",
    "transformers.quantizers.base.HfQuantizer._process_model_before_weight_loading",
    "transformers.quantizers.base.HfQuantizer._process_model_after_weight_loading",
)
# Not private by name, but documented nowhere.
UNDOCUMENTED = (
    "torch.cudnn_convolution_relu",
    "torch.cudnn_convolution_add_relu",
    "transformers.core_model_loading.ConversionOps",
    "torchao.quantization.quantize_.workflows.int8.int8_tensor.QuantizeTensorToInt8Kwargs",
    *(f"torch.ops.bitsandbytes.int8_{name}" for name in ("vectorwise_quant", "scaled_mm", "linear_matmul")),
)
OF_TRITON = (
    *("triton.AsyncCompileMode", "triton.runtime.driver", "triton.runtime.jit.JITFunction.warmup"),
    "triton.tools.tensor_descriptor.TensorDescriptor.from_tensor",
    *("triton.compiler.errors.CompilationError", "triton.runtime.errors.OutOfResources"),
    "triton.runtime.errors.PTXASError",
    *(f"triton.experimental.gluon.language.{name}" for name in ("warp_specialize", "DistributedLinearLayout")),
    *(f"triton.experimental.gluon.language.nvidia.hopper.{name}" for name in ("mbarrier", "tma", "warpgroup_mma")),
    "triton.experimental.gluon.nvidia.hopper.TensorDescriptor",
)
PUBLIC = {"_fields", "_asdict", "_replace", "_exit"}  # of named tuples and of os, by Python's documentation
OF_PYTHON = {"_abc_impl", "_is_protocol", "_is_runtime_protocol", "_backward_cls"}  # put into a class by its kind


def found(name: str) -> Any:
    """What a dotted name stands for: a module, an attribute, or one of an object that is made without arguments."""
    parts = name.split(".")
    module, rest = None, parts
    for i in range(1, len(parts)):
        try:
            module, rest = importlib.import_module(".".join(parts[:i])), parts[i:]
        except ImportError:
            break
    value: Any = module
    for part in rest:
        value = getattr(value, part.removesuffix("()"))
        value = value() if part.endswith("()") else value
    return value


@pytest.mark.parametrize("name", [*USED, *OVERRIDDEN, *UNDOCUMENTED])
def test_it_is_there(name: str) -> None:
    if "bitsandbytes" in name:
        importlib.import_module("bitsandbytes")  # which registers its operators
    found(name)


@pytest.mark.parametrize("name", OF_TRITON)
def test_it_is_there_in_triton(name: str) -> None:
    pytest.importorskip("triton")
    found(name)


@pytest.mark.parametrize("name", [*USED, *OVERRIDDEN, *UNDOCUMENTED, *OF_TRITON])
def test_it_is_still_used(name: str) -> None:
    assert any(name.rpartition(".")[2] in text for text in SOURCES.values()), f"{name} can leave the table"


SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> Iterator[str]:
    """Names that a file gives to something."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def private_of_others(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Private names that a file reads of what is not ours, as attributes, imports, or strings for `getattr`."""
    tables = {name for name in vars(nn.Module()) if is_private(name)}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield name
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("vggt_int8"):
                inside = any(is_private(part) for part in module.split("."))
                yield from (alias.name for alias in names if inside or is_private(alias.name))
            case ast.Constant(value=str(name)) if name in tables:
                yield name


@pytest.mark.slow
def test_all_that_is_used_is_in_the_table() -> None:
    trees = {path: ast.parse(text) for path, text in SOURCES.items()}
    own = {name for tree in trees.values() for name in defined(tree)}
    listed = {name.rpartition(".")[2] for name in USED} | PUBLIC
    missing = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path, tree in trees.items()
        for name in private_of_others(tree, own)
        if name not in listed
    }
    assert not missing, "private names of other libraries, for `USED`"


def test_all_that_is_overridden_is_in_the_table() -> None:
    for name in ("pretrained.model", "pretrained.quantizer", "quant", "runtime", "training.loop"):
        importlib.import_module(f"vggt_int8.{name}")
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "vggt_int8"]
    classes = {value for module in modules for value in vars(module).values() if inspect.isclass(value)}
    listed = {name.rpartition(".")[2] for name in OVERRIDDEN} | OF_PYTHON
    missing = {
        f"{ours.__qualname__}.{name}"
        for ours in classes
        if ours.__module__.startswith("vggt_int8")
        for name in vars(ours)
        if is_private(name) and name not in listed
        for base in ours.__mro__[1:]
        if not base.__module__.startswith("vggt_int8") and name in vars(base)
    }
    assert not missing, "private names of other libraries' classes, for `OVERRIDDEN`"


def test_the_wrappers_that_put_a_step_into_names() -> None:
    """`pretrained/names.py` takes them out of a checkpoint's names."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp import _common_utils

    linear = nn.Linear(2, 2)
    assert set(torch.compile(linear).state_dict()) == {"_orig_mod.weight", "_orig_mod.bias"}
    assert set(dict(checkpoint_wrapper(linear).named_children())) == {"_checkpoint_wrapped_module"}
    assert _common_utils.FSDP_WRAPPED_MODULE == "_fsdp_wrapped_module"


def test_the_hook_by_which_accelerate_moves_weights() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    linear = nn.Linear(2, 2)
    add_hook_to_module(linear, ModelHook())
    assert "_hf_hook" in vars(linear)
