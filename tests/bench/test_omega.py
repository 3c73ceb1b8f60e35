"""VGGT-Omega is measured by the same sweep: its sizes by name, random weights whose outputs vary, the same rows."""

import json

import pytest
import torch

from vggt_int8 import VGGTOmega, VGGTOmegaConfig
from vggt_int8.bench import sweep
from vggt_int8.bench.cost import Ceilings, WorkCounter
from vggt_int8.bench.source import SIZES, Source, describe_source, load_source
from vggt_int8.bench.sweep import Settings, Sweep
from vggt_int8.bench.variants import find_variants

CPU = torch.device("cpu")
SIZE = (32, 48)
TINY = {
    "model_type": "vggt_omega",
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "encoder_depth": 1,
    "depth": 3,
    "encoder_num_heads": 1,
    "num_heads": 1,
    "mlp_ratio": 2.0,
    "num_register_tokens": 3,
    "register_layers": [1],
    "camera_depth": 1,
    "camera_num_heads": 2,
    "dpt_features": 16,
    "dpt_out_channels": [8, 8, 8, 8],
    "dpt_layers": [0, 1, 1, 2],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("omega") / "config.json"
    path.write_text(json.dumps(TINY))
    return load_source(f"random:{path}", CPU)


def test_a_name_stands_for_its_sizes() -> None:
    assert SIZES["vggt-omega"] == {"model_type": "vggt_omega"}
    assert describe_source("random:vggt-omega") == "random weights of VGGT-Omega's shapes"


@pytest.mark.slow
def test_rows_are_those_of_vggt(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "measure_ceilings", lambda device: Ceilings("float32", 0.1, 0.4, 0.1, 10.0))
    names = ["fp32", "int8_dynamic:native", "reference", "fastvggt"]
    settings = Settings(frames=(2,), size=SIZE, seconds=0, variants=tuple(find_variants(names)))
    rows = {row["variant"]: row for row in Sweep(source, CPU, settings).rows()}
    assert [rows[name]["status"] for name in names] == ["ok", "ok", "failed", "failed"]
    assert rows["fp32"]["errors"].keys() == {"pose_enc", "depth", "depth_conf"}
    assert 0 < rows["int8_dynamic:native"]["errors"]["depth"]["relative"] < 0.1
    assert "`import vggt_omega` finds nothing" in rows["reference"]["reason"]
    assert "FastVGGT's code is for VGGT" in rows["fastvggt"]["reason"]


def test_weights_are_drawn_so_that_errors_show(source: Source) -> None:
    model = VGGTOmega(source.config).eval()
    model.load_state_dict(source.weights)
    with torch.no_grad():
        depth = model(source.images(2, SIZE, CPU)).depth
    assert 0.2 < depth.log().std() < 1


@pytest.mark.slow
def test_key_frames_are_counted_for_the_layers_that_have_them(source: Source) -> None:
    """By hand: keys and values of two of three layers are left out of frames that are none."""
    assert isinstance(source.config, VGGTOmegaConfig)
    work = WorkCounter(source.config, SIZE)
    tokens, width = 4 * 6 + 4, 32
    assert work(5).linears - work(5, keyframes=2).linears == 3 * 2 * 2 * tokens * width * 2 * width
