"""Nothing about a model is passed over in silence: what stands against the fused network, and what changes it."""

from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from tests.runtime.conftest import Make
from vggt_int8 import VGGTInt8
from vggt_int8.quant.backends import BackendError
from vggt_int8.runtime import Runtime
from vggt_int8.runtime.eligibility import Eligibility


def pre_hook(module: nn.Module, arguments: object) -> None: ...


def train(model: VGGTInt8) -> None:
    model.train()


def need_gradients(model: VGGTInt8) -> None:
    model.camera_head.trunk[0].norm1.weight.requires_grad_()


def hook(model: VGGTInt8) -> None:
    model.depth_head.norm.register_forward_pre_hook(pre_hook)


def subclass(model: VGGTInt8) -> None:
    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 100

    old = model.camera_head.pose_branch.fc2
    model.camera_head.pose_branch.fc2 = Louder(old.in_features, old.out_features).eval().requires_grad_(False)


def patch(model: VGGTInt8) -> None:
    attention = model.aggregator.frame_blocks[0].attn
    attention.forward = lambda x, *_: 0 * x


def offload(model: VGGTInt8) -> None:
    cpu_offload(model, execution_device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (train, "training mode"),
        (need_gradients, "gradients are needed"),
        (hook, r"depth_head\.norm has a forward hook"),
        (subclass, r"camera_head\.pose_branch\.fc2 is a tests\..*Louder, which it does not know"),
        (patch, r"aggregator\.frame_blocks\.0\.attn has a forward method of its own"),
        (offload, "accelerate moves weights"),
    ],
)
def test_what_stands_against_it(
    make_quantized: Make, tiny_images: Tensor, change: Callable[[VGGTInt8], None], message: str
) -> None:
    model = make_quantized("int8_dynamic")
    model.set_runtime("on")
    model(tiny_images)
    change(model)
    with pytest.raises(BackendError, match=message):
        model(tiny_images)
    model.set_runtime("auto")
    assert model(tiny_images, check_finite=False).depth is not None


@pytest.mark.parametrize(
    ("layer", "mode"), [("camera_head.trunk.0.mlp.fc1", "fused"), ("aggregator.frame_blocks.0.mlp.fc1", "plain")]
)
def test_weight_only_layers_may_run_on_the_definition(
    make_quantized: Make, tiny_images: Tensor, layer: str, mode: str
) -> None:
    model = make_quantized("int8_dynamic")
    model.set_backend("native")
    model.get_submodule(layer).backend = "reference"
    model(tiny_images)
    assert model.runtime_report().mode == mode


def test_autocast_and_gradients_of_the_input(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    runtime = Runtime(model)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(BackendError, match="autocast is on"):
        runtime(tiny_images)
    images = tiny_images.clone().requires_grad_()
    with pytest.raises(BackendError, match="gradients are needed"):
        runtime(images)
    with torch.no_grad():
        runtime(images)


def test_hooks_of_every_module(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    runtime = Runtime(model)
    handle = nn.modules.module.register_module_forward_pre_hook(pre_hook)
    try:
        with pytest.raises(BackendError, match="every module has a forward hook"):
            runtime(tiny_images)
    finally:
        handle.remove()
    runtime(tiny_images)


def test_a_hook_on_the_whole_model_is_fine(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.set_runtime("on")
    model(tiny_images)
    assert calls == [1]


def test_weights_on_another_device(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    model.depth_head.to("meta")
    with pytest.raises(BackendError, match="several devices: cpu, meta"):
        Runtime(model)(tiny_images)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.aggregator, "camera_token", nn.Parameter(m.aggregator.camera_token * 2)),
        lambda m: setattr(m.aggregator.camera_token, "data", m.aggregator.camera_token.data * 2),
        lambda m: m.aggregator.frame_blocks[0].set_submodule("mlp", nn.Identity()),
        lambda m: setattr(m.aggregator.frame_blocks[0].mlp.fc1, "backend", "native"),
        lambda m: m.register_parameter("extra", nn.Parameter(torch.zeros(1))),
        lambda m: m.half(),
    ],
)
def test_a_change_is_seen(make_quantized: Make, change: Callable[[VGGTInt8], None]) -> None:
    model = make_quantized("int8_dynamic")
    eligibility = Eligibility(model)
    assert eligibility.unchanged()
    change(model)
    assert not eligibility.unchanged()


def test_new_weights_are_used(make_quantized: Make, tiny_images: Tensor) -> None:
    model = make_quantized("int8_dynamic")
    runtime = Runtime(model)
    runtime(tiny_images)
    model.aggregator.camera_token.data = model.aggregator.camera_token.data * 2
    model.depth_head.norm.weight.data.mul_(0.5)  # in place: the same memory
    torch.testing.assert_close(runtime(tiny_images).depth, model(tiny_images).depth, rtol=1e-4, atol=1e-4)


def test_a_model_can_go_while_its_runtime_is_held(make_quantized: Make, tiny_images: Tensor) -> None:
    runtime = Runtime(make_quantized("none"))
    with pytest.raises(ReferenceError, match="keep a reference"):
        runtime(tiny_images)
