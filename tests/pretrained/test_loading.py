"""Loading: quantizing while streaming, from every kind of checkpoint, into every compute dtype and backend."""

import functools
import itertools
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

import vggt_int8
from tests.calibrated import calibration_for
from tests.codes import FACTOR
from tests.other_weights import copy_config
from tests.states import assert_same_state
from vggt_int8 import BackendError, CheckpointError, Recipe, VGGTConfig, VGGTInt8, load_recipe, quantize
from vggt_int8.cli.recipes import FACTS
from vggt_int8.difference import relative_error
from vggt_int8.kernels.cpu import compiled, matmul
from vggt_int8.machine import int_mm_is_exact
from vggt_int8.quant import BACKENDS, Int8Linear
from vggt_int8.quant.storage import Int8Storage
from vggt_int8.recipe import expand, find_family

Load = Callable[[str | None], VGGTInt8]
RECIPES = ["fp16", "int8_dynamic", "int8_weight_only", "llm_int8"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def loaded(bare_checkpoint: Path) -> Load:
    """The bare network under a recipe, in fp32, loaded once. Read only."""
    return functools.cache(lambda recipe: VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe))


@pytest.fixture(scope="module")
def loaded_whole(tiny_checkpoint: Path) -> Load:
    """The golden network likewise."""
    return functools.cache(lambda recipe: VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe))


def write(folder: Path, source: Path, weights: dict[str, Tensor], file: str = "model.safetensors") -> Path:
    folder.mkdir()
    copy_config(source, folder)
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_streaming_equals_quantizing_in_memory(
    tiny_checkpoint: Path, make_tiny: Callable[[], VGGTInt8], tiny_images: Tensor, recipe: str
) -> None:
    streamed = VGGTInt8.from_pretrained(tiny_checkpoint, recipe=recipe)
    in_memory = quantize(make_tiny(), recipe)
    assert_same_state(streamed, in_memory)
    assert not streamed.training
    assert not any(p.requires_grad for p in streamed.parameters())
    assert torch.equal(streamed(tiny_images).depth, in_memory(tiny_images).depth)
    assert str(streamed.quantization_report()) == str(in_memory.quantization_report())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float64"])
def test_codes_do_not_depend_on_the_compute_dtype(
    bare_checkpoint: Path, loaded: Load, recipe: str, dtype: torch.dtype | str
) -> None:
    fp32 = loaded(recipe).state_dict()
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe, dtype=dtype)
    compute = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    int8 = {name for name, module in model.named_modules() if isinstance(module, Int8Storage)}
    assert recipe == "fp16" or int8
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] in int8:
            assert tensor.dtype == fp32[name].dtype
            assert torch.equal(tensor, fp32[name]), name
        else:
            assert tensor.dtype == compute, name
            assert torch.equal(tensor, fp32[name].to(compute)), name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_compute_dtypes_run(
    tiny_checkpoint: Path, loaded_whole: Load, tiny_images: Tensor, tiny_points: Tensor, dtype: torch.dtype
) -> None:
    want = loaded_whole(None)(tiny_images)
    model = VGGTInt8.from_pretrained(tiny_checkpoint, recipe="int8_dynamic", dtype=dtype)
    got = model(tiny_images, query_points=tiny_points)
    for key, value in got.items():
        if key != "images":
            assert value.dtype == torch.float32, key
    assert relative_error(got.depth, want.depth) < 0.1


def test_the_former_name_of_dtype_is_heard(bare_checkpoint: Path) -> None:
    assert VGGTInt8.from_pretrained(bare_checkpoint, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert VGGTInt8.from_pretrained(bare_checkpoint).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision_checkpoints(
    tmp_path: Path, bare_checkpoint: Path, bare_weights: dict[str, Tensor], dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in bare_weights.items()}
    folder = write(tmp_path / "half", bare_checkpoint, weights)
    model = VGGTInt8.from_pretrained(folder, recipe="int8_dynamic")
    config = VGGTConfig.from_pretrained(bare_checkpoint)
    want = VGGTInt8(config).eval()
    want.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    assert_same_state(model, quantize(want, "int8_dynamic"))


def test_a_sharded_float_checkpoint(tmp_path: Path, bare_checkpoint: Path, loaded: Load) -> None:
    loaded(None).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 5
    assert_same_state(
        VGGTInt8.from_pretrained(tmp_path / "shards", recipe="int8_dynamic"),
        loaded("int8_dynamic"),
    )


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", "nested.pt", "old.pt"])
def test_a_single_file(
    tmp_path: Path, bare_checkpoint: Path, loaded: Load, bare_weights: dict[str, Tensor], suffix: str
) -> None:
    file = tmp_path / f"model{suffix}" if suffix.startswith(".") else tmp_path / suffix
    if suffix == ".safetensors":
        save_file(bare_weights, file)
    else:
        content = {"model": bare_weights} if "nested" in suffix else bare_weights
        torch.save(content, file, _use_new_zipfile_serialization="old" not in suffix)
    config = VGGTConfig.from_pretrained(bare_checkpoint)
    for recipe in (None, "int8_dynamic"):
        assert_same_state(
            VGGTInt8.from_pretrained(file, recipe=recipe, config=config),
            loaded(recipe),
        )


def test_a_folder_with_a_pickle_of_tensors(
    tmp_path: Path, bare_checkpoint: Path, loaded: Load, bare_weights: dict[str, Tensor]
) -> None:
    copy_config(bare_checkpoint, tmp_path)
    torch.save(bare_weights, tmp_path / "pytorch_model.bin")
    assert_same_state(
        VGGTInt8.from_pretrained(tmp_path, recipe="int8_dynamic"),
        loaded("int8_dynamic"),
    )


def test_a_config_with_three_sizes(tmp_path: Path) -> None:
    """The public checkpoint's config.json has no model_type and little else."""
    (tmp_path / "config.json").write_text('{"img_size": 518, "patch_size": 14, "embed_dim": 1024}')
    config = VGGTConfig.from_pretrained(tmp_path)
    assert config.to_dict() == VGGTConfig().to_dict()
    assert (config.depth, config.track_uv_embedding) == (24, False)


@pytest.mark.slow
def test_heads_that_are_switched_off_leave_their_weights_behind(
    tmp_path: Path, tiny_checkpoint: Path, loaded_whole: Load
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "depth")
    config = json.loads((tmp_path / "depth" / "config.json").read_text())
    config.update(enable_track=False, enable_point=False)
    (tmp_path / "depth" / "config.json").write_text(json.dumps(config))
    model = VGGTInt8.from_pretrained(tmp_path / "depth", recipe="int8_dynamic")
    assert model.track_head is None
    whole = loaded_whole("int8_dynamic").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole[name])
    model.save_pretrained(tmp_path / "saved")
    assert_same_state(VGGTInt8.from_pretrained(tmp_path / "saved"), model)


@pytest.mark.parametrize("recipe", [None, "int8_dynamic"])
def test_fields_of_the_config_are_arguments(
    tiny_checkpoint: Path,
    int8_checkpoint: Path,
    loaded_whole: Load,
    recipe: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    whole = loaded_whole(recipe).state_dict()
    sources = [(tiny_checkpoint, recipe)] + ([(int8_checkpoint, None)] if recipe else [])
    for source, given in sources:
        model = VGGTInt8.from_pretrained(
            source, recipe=given, enable_point=False, enable_track=False, camera_iterations=1
        )
        assert (model.point_head, model.track_head) == (None, None)
        assert model.config.camera_iterations == 1
        assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
    assert "UNEXPECTED" not in caplog.text, "transformers' table of weights that were left out as asked"
    with pytest.raises(CheckpointError, match="camera_iterations must be at least 1, got 0"):
        VGGTInt8.from_pretrained(tiny_checkpoint, camera_iterations=0)


def test_auto_model(bare_checkpoint: Path, bare_int8: Path, tiny_images: Tensor) -> None:
    assert isinstance(AutoConfig.from_pretrained(bare_int8), VGGTConfig)
    model = AutoModel.from_pretrained(bare_int8)
    assert type(model) is VGGTInt8
    ours = VGGTInt8.from_pretrained(bare_int8)
    assert_same_state(model, ours)
    assert torch.equal(model(tiny_images).depth, ours(tiny_images).depth)
    plain = AutoModel.from_pretrained(bare_checkpoint)
    assert not any(isinstance(module, Int8Storage) for module in plain.modules())
    assert_same_state(AutoModel.from_pretrained(bare_checkpoint, recipe="int8_dynamic"), ours)


@pytest.mark.slow
def test_a_recipe_object_and_an_own_file(tmp_path: Path, bare_checkpoint: Path) -> None:
    pattern = r"aggregator\..*\.mlp\.fc[12]"
    recipe = Recipe(name="mlps", activations="dynamic", include=(pattern,))
    path = tmp_path / "mlps.toml"
    path.write_text(f"activations = 'dynamic'\ninclude = ['{pattern}']\n")
    by_object = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe)
    assert_same_state(by_object, VGGTInt8.from_pretrained(bare_checkpoint, recipe=path))
    assert sum(isinstance(module, Int8Linear) for module in by_object.modules()) == 10
    by_object.save_pretrained(tmp_path / "saved")
    again = VGGTInt8.from_pretrained(tmp_path / "saved")
    assert_same_state(again, by_object)
    assert again.config.quantization_config.parsed() == recipe


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:calibrated with")
@pytest.mark.parametrize("recipe", ["int8_weight_only", "int8_static", "int8_dynamic", "llm_int8"])
def test_a_checkpoint_runs_on_every_backend_of_the_table(
    tmp_path: Path, bare_checkpoint: Path, loaded: Load, tiny_images: Tensor, recipe: str
) -> None:
    if not int_mm_is_exact():
        pytest.skip("this CPU's integer product saturates, so that two backends are refused")
    written, (_, runs_on) = {}, FACTS[recipe]
    for backend in runs_on:
        calibration = calibration_for(recipe, tiny_images)
        model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe, backend=backend, **calibration)
        model.save_pretrained(tmp_path / backend)
        written[backend] = model(tiny_images).depth
    for backend, file in itertools.product(runs_on, ("config.json", "model.safetensors")):
        assert (tmp_path / backend / file).read_bytes() == (tmp_path / "reference" / file).read_bytes()
    plain = loaded(None)(tiny_images).depth
    for backend in BACKENDS:
        if backend not in runs_on:
            with pytest.raises(BackendError, match=f"backend '{backend}' cannot run"):
                VGGTInt8.from_pretrained(tmp_path / "reference", backend=backend)
            continue
        model = VGGTInt8.from_pretrained(tmp_path / "reference", backend=backend)
        used = {row.backend for row in model.quantization_report() if row.type == "Int8Linear"}
        assert used == ({backend, "reference"} if backend == "bitsandbytes" else {backend})
        got = model(tiny_images).depth
        assert torch.equal(got, written[backend])
        lost = relative_error(written["reference"], plain)
        assert relative_error(got, written["reference"]) < FACTOR * lost  # codes on a border go to either side
        assert 1e-4 < relative_error(got, plain) < min(0.05, FACTOR * lost)


def test_set_backend(bare_int8: Path, bare_checkpoint: Path, tiny_images: Tensor) -> None:
    model = VGGTInt8.from_pretrained(bare_int8)
    model.set_runtime("off")  # the layers alone; `tests/runtime/test_cpu.py` has the fused network
    native = model(tiny_images).depth
    for backend in ("reference", "auto", "native", "reference"):
        model.set_backend(backend)
        used = {row.backend for row in model.quantization_report() if row.scheme == "W8A8 dynamic"}
        assert used == {"native" if backend == "auto" else backend}
        torch.testing.assert_close(model(tiny_images).depth, native, rtol=1e-5, atol=1e-5)
    for bad in ("cuda", "Native"):
        with pytest.raises(BackendError, match=f"there is no backend '{bad}'"):
            model.set_backend(bad)
    llm = VGGTInt8.from_pretrained(bare_checkpoint, recipe="llm_int8")
    with pytest.raises(BackendError, match=r"'native' cannot run LLM\.int8"):
        llm.set_backend("native")
    assert {m.backend for m in llm.modules() if isinstance(m, Int8Linear)} == {"auto"}
    with pytest.raises(BackendError, match="not quantized"):
        VGGTInt8.from_pretrained(bare_checkpoint).set_backend("native")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["off", "on"])
def test_the_whole_forward_multiplies_integers(
    int8_checkpoint: Path, tiny_images: Tensor, tiny_points: Tensor, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every W8A8 layer's stored codes go into the op that the report names, fused or not."""
    if matmul.cpu_int8_kernel() == matmul.FLOAT32:
        pytest.skip("this CPU has no exact integer kernel, and the report says so")
    model = VGGTInt8.from_pretrained(int8_checkpoint)
    model.set_runtime(runtime)
    report = {row.name: row for row in model.quantization_report()}
    real, multiplied = torch._int_mm, set()

    def multiply(a: Tensor, b: Tensor) -> Tensor:
        multiplied.add(b.data_ptr())
        return real(a, b)

    def call(name: str, *arguments: Tensor | float | None) -> None:
        if name == "vi_linear":
            multiplied.add(arguments[2].data_ptr())
        real_call(name, *arguments)

    real_call = compiled.call
    monkeypatch.setattr(compiled, "call", call)
    monkeypatch.setattr(torch, "_int_mm", multiply)
    model(tiny_images, query_points=tiny_points)
    int8 = [name for name, row in report.items() if row.scheme == "W8A8 dynamic"]
    assert all(report[name].kernel.startswith(("torch._int_mm", "compiled kernels")) for name in int8)
    assert multiplied == {model.get_submodule(name).weight.data_ptr() for name in int8}


def test_the_backend_is_not_stored_and_the_recipe_is_whole(tmp_path: Path, bare_checkpoint: Path) -> None:
    model = VGGTInt8.from_pretrained(bare_checkpoint, recipe="int8_dynamic", backend="reference")
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert stored == {
        "quant_method": "vggt_int8",
        "format_version": 2,
        "recipe": expand(load_recipe("int8_dynamic"), find_family("vggt", ())).to_dict(),
        "calibration": None,
    }
    assert model.config.quantization_config.backend == "reference"
    again = VGGTInt8.from_pretrained(tmp_path / "saved")
    assert again.config.quantization_config.backend == "auto"


def test_names_of_the_package() -> None:
    for name in vggt_int8.__all__:
        assert getattr(vggt_int8, name) is not None


@pytest.mark.parametrize("recipe", [None, "int8_dynamic"])
def test_a_model_that_is_loaded_in_inference_mode_is_like_any_other(bare_checkpoint: Path, recipe: str | None) -> None:
    with torch.inference_mode():
        model = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe)
    expected = VGGTInt8.from_pretrained(bare_checkpoint, recipe=recipe)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
