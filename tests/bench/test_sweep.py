"""A sweep on the CPU: complete rows, gates that hide times, failures that stop nothing."""

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vggt_int8 import BackendError, RecipeError
from vggt_int8.bench import baselines
from vggt_int8.bench.baselines import Network
from vggt_int8.bench.expected import Expected, compare
from vggt_int8.bench.records import Row, check_row, identity
from vggt_int8.bench.source import Source, load_source
from vggt_int8.bench.sweep import Settings, _time_limit
from vggt_int8.bench.variants import BASELINES, DEFAULTS, Variant, find_variant, find_variants
from vggt_int8.cli.bench import _line

Rows = Callable[..., list[Row]]


@pytest.mark.slow
def test_rows_are_complete(sweep_rows: Rows) -> None:
    rows = sweep_rows(*DEFAULTS["cpu"], "int8_dynamic:reference", seconds=0.01)
    assert [(row["variant"], row["frames"]) for row in rows] == [
        (name, frames) for name in (*DEFAULTS["cpu"], "int8_dynamic:reference") for frames in (1, 2)
    ]
    for row in rows:
        check_row(row)
        assert row["status"] == "ok", row["reason"]
        assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["share"] == row["floor_ms"] / row["ms"]
        assert row["compared_with"] == "fp32"
        assert row["errors"].keys() == set(baselines.COMPARED)
        assert row["peak_gib"] is None
        assert row["versions"]["torch"]
        assert row["machine"]["cpu"]
        errors = [error["relative"] for error in row["errors"].values()]
        assert max(errors) < 0.1
        assert (max(errors) == 0) == (row["variant"] == "fp32")
        assert row["mode"].startswith("fused") == row["variant"].endswith(":native")
        ours = ":" in row["variant"]  # INT8, whatever runs it
        assert ("; global attention: exact, by " in row["mode"]) == ours


@pytest.mark.slow
def test_static_scales_are_found_before_anything_is_timed(sweep_rows: Rows) -> None:
    (row,) = [row for row in sweep_rows("int8_static_rotated:native", seconds=0.01) if row["frames"] == 2]
    assert row["status"] == "ok", row["reason"]
    assert row["mode"].startswith("fused")
    assert 0 < max(error["relative"] for error in row["errors"].values()) < 0.2


@pytest.mark.slow
def test_calibration_images_are_others_than_those_that_are_measured(tiny_source: Source) -> None:
    for source in (tiny_source, load_source("embedded", torch.device("cpu"))):
        scenes, size = source.calibration(6), (source.config.img_size,) * 2
        assert [scene.shape for scene in scenes] == [(4, 3, *size), (2, 3, *size)][: 1 if source.is_random else 2]
        assert all(torch.equal(a, b) for a, b in zip(scenes, source.calibration(6), strict=True))
        assert not torch.equal(scenes[0], source.images(4, size, torch.device("cpu")))


@pytest.mark.slow
def test_weights_are_those_of_the_dtype(sweep_rows: Rows) -> None:
    size = {row["variant"]: row["weights_gib"] for row in sweep_rows("fp32", "bf16", "torchao", "int8_dynamic:native")}
    assert size["bf16"] == size["fp32"] / 2
    assert size["int8_dynamic:native"] < size["torchao"] < size["bf16"]


def altered(change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Variant:
    """fp32 with other outputs."""

    def build(source: Source, device: torch.device) -> Network:
        network = baselines.fp32(source, device)
        right = network.forward
        network.forward = lambda images: change(dict(right(images)))
        return network

    return replace(BASELINES["fp32"], name="altered", build=build)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda out: out | {"depth": out["depth"] * 1.2}, "relative error of depth is 0.2, above 0.1"),
        (lambda out: out | {"depth": torch.ones_like(out["depth"])}, "relative error of depth"),
        (lambda out: out | {"world_points": out["world_points"].flip(1)}, "relative error of world_points"),
        (lambda out: out | {"pose_enc": out["pose_enc"] * float("nan")}, "relative error of pose_enc is nan"),
        (lambda out: out | {"depth_conf": out["depth_conf"][:, :1]}, "depth_conf is [1, 1, 42, 56]"),
        (lambda out: {k: v for k, v in out.items() if k != "depth"}, "depth is missing"),
    ],
)
def test_wrong_outputs_show_no_time(sweep_rows: Rows, change: Callable, reason: str) -> None:
    (row,) = sweep_rows(altered(change), frames=(2,))
    check_row(row)
    assert row["status"] == "wrong"
    assert row["reason"].startswith(reason)
    assert [row[name] for name in ("ms", "ms_low", "ms_high", "share", "runs")] == [None] * 4 + [0]


@pytest.mark.slow
def test_what_is_timed_is_checked_too(sweep_rows: Rows) -> None:
    """Right in the first call and wrong afterwards, as a badly captured graph would be."""
    calls = []

    def change(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return outputs if len(calls) == 1 else outputs | {"depth": outputs["depth"] * 2}

    (row,) = sweep_rows(altered(change), frames=(2,), seconds=0.01)
    check_row(row)
    assert row["reason"] == "relative error of depth is 1, above 0.1"
    assert [row[name] for name in ("status", "ms", "share", "runs")] == ["wrong", None, None, 0]


@pytest.mark.slow
def test_what_fails_says_why_and_the_sweep_goes_on(sweep_rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(source: Source, device: torch.device) -> Network:
        def forward(images: Tensor) -> Mapping[str, Tensor]:
            if len(images) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB. Of the allocated memory 1 GiB is …")
            return right(images)

        network = baselines.fp32(source, device)
        right, network.forward = network.forward, forward
        return network

    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    failing = replace(BASELINES["fp32"], name="failing", build=build)
    rows = sweep_rows(failing, "reference", "bf16-compiled-graph", "llm_int8:native", "fp16:native", "fp32")
    for row in rows:
        check_row(row)
    found = {(row["variant"], row["frames"]): row["reason"] for row in rows if row["status"] == "failed"}
    assert found["failing", 1] == "out of memory: CUDA out of memory. Tried 9 GiB."
    assert "install the reference repository" in found["reference", 2]
    assert "need a CUDA device" in found["bf16-compiled-graph", 1]
    assert "outlier columns" in found["llm_int8:native", 1]
    assert "plain network in fp32" in found["fp16:native", 1]
    assert {row["variant"] for row in rows if row["status"] == "ok"} == {"failing", "fp32"}


@pytest.mark.slow
def test_the_reference_repository_is_measured_where_it_is_installed(
    sweep_rows: Rows, tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the reference's constructor and names; its own code is larger than what tests may run."""
    package = tmp_path / "vggt" / "models"
    package.mkdir(parents=True)
    (package / "vggt.py").write_text(
        "import torch\n"
        "from vggt_int8 import VGGTConfig, VGGT as Network\n"
        "config = None\n"
        "class VGGT(Network):\n"
        "    def __init__(self, img_size=518, patch_size=14, embed_dim=1024, enable_track=True):\n"
        "        assert (img_size, patch_size, embed_dim, enable_track) == (56, 14, 32, False)\n"
        "        super().__init__(config)\n"
        "    def forward(self, images):\n"
        "        assert torch.is_autocast_enabled('cpu')\n"
        "        return dict(super().forward(images))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    theirs = importlib.import_module("vggt.models.vggt")
    theirs.config = tiny_source.config
    (refused,) = sweep_rows("reference", frames=(2,))
    assert "VGGT-1B's depth alone" in refused["reason"]
    monkeypatch.setattr(baselines, "VGGTConfig", lambda: tiny_source.config)
    (row,) = sweep_rows("reference", frames=(2,))
    assert row["status"] == "ok", row["reason"]
    assert 0 < row["errors"]["depth"]["relative"] < 0.1


@pytest.mark.slow
def test_rows_that_exist_are_left_out(sweep_rows: Rows) -> None:
    rows = sweep_rows("fp32")
    rest = sweep_rows("fp32", "bf16", done=tuple(identity(row) for row in rows), frames=(1, 2, 3))
    assert [(row["variant"], row["frames"]) for row in rest] == [("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
    assert len(sweep_rows("fp32", done=tuple(identity(row) for row in rows), size=(42, 42))) == 2


def test_zero_seconds_time_the_first_call(sweep_rows: Rows) -> None:
    (row,) = sweep_rows("fp32", frames=(1,))
    assert (row["runs"], row["ms_low"]) == (1, None)
    assert row["ms"] == row["first_s"] * 1e3


@pytest.mark.slow
def test_profiles_are_written(sweep_rows: Rows, tmp_path: Path) -> None:
    sweep_rows("fp32", frames=(1,), profile=tmp_path / "profiles")
    assert "aten::" in (tmp_path / "profiles" / "fp32-1.txt").read_text()


def test_slow_variants_end_early_unless_named() -> None:
    variants = tuple(find_variants(["fp32", "int8_dynamic:native"]))
    settings = Settings(frames=(1, 10, 200), size=(42, 56), variants=variants)
    assert [settings.frames_of(variant) for variant in variants] == [(1, 10), (1, 10, 200)]
    assert replace(settings, everything=True).frames_of(variants[0]) == (1, 10, 200)


def test_compilation_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimeoutError, match="no result after"), _time_limit(0.05):
        time.sleep(5)
    with _time_limit(0.05):
        pass
    time.sleep(0.1)  # the alarm is gone


def test_without_expected_outputs_values_must_be_finite() -> None:
    nothing = Expected("", {})
    assert compare(nothing, {"depth": torch.ones(1, 2, 3)}) == ({}, "")
    assert compare(nothing, {"depth": torch.full((1, 2, 3), torch.inf)}) == ({}, "depth not finite")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("bf16-compilde", ValueError, "no variant 'bf16-compilde': choose from reference, fp32"),
        ("int8_dynamic:cuda", BackendError, "'int8_dynamic:cuda' names no backend: choose one of native"),
        ("int4:native", RecipeError, "no recipe 'int4'"),
        ("absent.toml:native", RecipeError, "absent.toml"),
    ],
)
def test_unknown_variants(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        find_variant(name)


def test_default_variants_exist() -> None:
    for names in DEFAULTS.values():
        assert [variant.name for variant in find_variants(names)] == list(names)


@pytest.mark.parametrize(
    ("name", "text"),
    [("random:huge", "choose random:vggt-1b, random:vggt-omega, random:small or"), ("no/such/folder", "no folder")],
)
def test_unknown_sources(name: str, text: str) -> None:
    with pytest.raises(Exception, match=text):
        load_source(name, torch.device("cpu"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"embed_dim": 192, "depht": 3}', "a VGGT's config has no depht"),
        ("[1]", r"it holds \[1\], not an object"),
        ('{"embed_dim": ', "Expecting value: line 1"),
        ('{"embed_dim": "wide"}', "Field 'embed_dim' expected int, got str"),
        ('{"model_type": "llama"}', "its model_type is 'llama'; it can be vggt, vggt_omega"),
        ('{"embed_dim": 7}', "embed_dim must be a multiple of 16"),
    ],
)
def test_files_that_describe_no_network(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)config\.json describes no VGGT: .*{reason}"):
        load_source(f"random:{file}", torch.device("cpu"))


def test_checkpoints_are_sources_unless_quantized(tiny_checkpoint: Path, int8_checkpoint: Path) -> None:
    cpu = torch.device("cpu")
    source = load_source(str(tiny_checkpoint), cpu)
    assert not any(name.startswith("track_head") for name in source.weights)
    images = source.images(2, (42, 56), cpu)
    assert images.shape == (2, 3, 42, 56)
    assert 0 <= images.min() < images.max() <= 1
    with pytest.raises(ValueError, match="quantized already"):
        load_source(str(int8_checkpoint), cpu)


def test_random_weights_make_every_output_vary(tiny_source: Source) -> None:
    """So that an output that lost its content is far from the expected one."""
    network = baselines.fp32(tiny_source, torch.device("cpu"))
    outputs = network(tiny_source.images(3, (42, 56), torch.device("cpu")))
    for name in baselines.COMPARED:
        centred = outputs[name] - outputs[name].mean()
        assert centred.norm() > 0.15 * outputs[name].norm(), name
    assert float(outputs["intrinsic"].max()) < float("inf")


def test_a_variant_that_merges_has_no_floor_and_nothing_to_be_compared_with(sweep_rows: Rows) -> None:
    """How much work it leaves out is not known, so neither is what its time is a share of."""
    rows = sweep_rows(replace(find_variants(["fp32"])[0], name="merged", merges=True))
    assert [row["frames"] for row in rows] == [1, 2]
    for row in rows:
        check_row(row)
        assert row["status"] == "ok"
        assert row["errors"] == {}
        assert [row[name] for name in ("tflop", "floor_ms", "share")] == [None] * 3
        assert "unchecked" in _line(row)
