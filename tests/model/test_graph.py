"""The forward reads nothing back from the device, compiles into one graph, and shares its tables safely."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.model.tables import rope_table, uv_table

READS_BACK = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class NoReadBack(TorchDispatchMode):
    """Fails on operations that on a GPU would wait for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func.overloadpacket.__name__ not in READS_BACK, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def inputs(height: int = 28, width: int = 42) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 3, height, width, generator=generator)
    return images, torch.rand(2, 4, 2, generator=generator) * 28


def test_the_read_back_check_can_fail() -> None:
    with NoReadBack(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(3).sum().item()


@torch.inference_mode()
def test_forward_reads_nothing_back(make_model: Callable[..., VGGT]) -> None:
    model, (images, points) = make_model(), inputs()
    with NoReadBack():
        model(images, query_points=points)


@pytest.mark.slow
@torch.inference_mode()
def test_the_meta_device_is_enough() -> None:
    """There, reading a value or mixing in a tensor from the host raises. With VGGT-1B's widths."""
    with torch.device("meta"):
        model = VGGT(VGGTConfig(encoder_depth=1, depth=4, dpt_layers=[0, 1, 2, 3], camera_depth=1)).half().eval()
    images, points = torch.zeros(1, 2, 3, 392, 518, device="meta"), torch.zeros(1, 5, 2, device="meta")
    output = model(images, query_points=points)
    assert output.world_points.shape == (1, 2, 392, 518, 3)
    assert output.track.shape == (1, 2, 5, 2)
    assert all(value.dtype == torch.float32 for value in output.values())


@pytest.mark.slow
@torch.no_grad()
def test_compiles_into_one_graph_for_each_shape(tiny_sizes: dict[str, Any]) -> None:
    torch._dynamo.reset()
    few = {"encoder_depth": 1, "depth": 1, "dpt_layers": [0, 0, 0, 0], "camera_depth": 1, "camera_iterations": 1}
    few |= {"enable_depth": False, "track_iterations": 1, "track_corr_levels": 2}  # each part once: tracing takes long
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VGGT(VGGTConfig(**tiny_sizes | few)).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images, points = inputs()
    for arguments in ((images, points), (images.mT.contiguous(),)):
        output, expected = compiled(*arguments), model(*arguments)
        assert output.keys() == expected.keys()
        for name, value in output.items():
            torch.testing.assert_close(value, expected[name])


def test_training_works_after_inference_mode(make_model: Callable[..., VGGT]) -> None:
    model, (images, points) = make_model(), inputs(56, 28)
    with torch.inference_mode():
        model(images, query_points=points)
    model(images, query_points=points).depth.sum().backward()


def test_tables_are_built_once_per_shape_and_device() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    table = rope_table(3, 5, 5, 16, 100.0, device=cpu)
    assert table.shape == (2, 20, 16)
    assert rope_table(3, 5, 5, 16, 100.0, device=cpu) is table
    assert rope_table(5, 3, 5, 16, 100.0, device=cpu) is not table
    assert rope_table(3, 5, 5, 16, 100.0, device=meta).device.type == "meta"


def test_fake_tensors_do_not_stay_in_the_cache() -> None:
    cpu = torch.device("cpu")
    with FakeTensorMode():
        assert type(uv_table(123, 0.5, 8, device=cpu)) is not Tensor
    assert type(uv_table(123, 0.5, 8, device=cpu)) is Tensor


@pytest.mark.gpu
@torch.inference_mode()
def test_captured_in_a_cuda_graph(make_model: Callable[..., VGGT]) -> None:
    model = make_model(torch.float16).cuda()
    images, points = (x.cuda() for x in inputs())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        expected = model(images, query_points=points)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = model(images, query_points=points)
    graph.replay()
    for name, value in output.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@torch.inference_mode()
def test_second_call_does_not_synchronise(make_model: Callable[..., VGGT]) -> None:
    model = make_model(torch.float16).cuda()
    images, points = (x.cuda() for x in inputs())
    model(images, query_points=points)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(images, query_points=points)
    finally:
        torch.cuda.set_sync_debug_mode("default")
