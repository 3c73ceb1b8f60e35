"""The yardstick of single layers: its weights and inputs have the ranges that it claims, and its table says them."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import layer_error
from vggt_int8.eval.outlier_tokens import linear_inputs

SMALL = {"img_size": 56, "embed_dim": 128, "encoder_num_heads": 2, "num_heads": 2}
BATCH = torch.rand(1, 2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_weights_and_inputs_have_the_published_ranges() -> None:
    state = torch.get_rng_state()
    model = layer_error.make_model(0, [BATCH], **SMALL)
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers were used up"
    linears = [name for name, module in model.aggregator.named_modules(prefix="aggregator") if hasattr(module, "bias")]
    linears = [name for name in linears if name.endswith(layer_error.LINEARS)]
    assert len(linears) == 4 * (3 + 2 + 2)
    rows = model.get_submodule("aggregator.patch_embed.blocks.2.attn.qkv").weight.detach().norm(dim=1)
    assert 2 < rows.max() / rows.min() < 20
    assert rows.max() == pytest.approx(layer_error.LARGEST_ROW, rel=0.2)
    largest = {
        name: [x.abs().max().item() for x in found] for name, found in linear_inputs(model, linears, [BATCH]).items()
    }
    assert largest["aggregator.patch_embed.blocks.0.mlp.fc2"][0] == pytest.approx(142, rel=0.05)
    assert largest["aggregator.patch_embed.blocks.1.mlp.fc2"][0] == pytest.approx(26, rel=0.05)
    for part in ("frame", "global"):
        assert largest[f"aggregator.{part}_blocks.0.mlp.fc2"][0] == pytest.approx(14, rel=0.1)
        for linear in ("attn.qkv", "mlp.fc1"):
            assert 11 < largest[f"aggregator.{part}_blocks.1.{linear}"][0] < 26
    assert 3 < largest["aggregator.patch_embed.blocks.1.attn.qkv"][1] < 6


def test_the_table_has_a_line_for_each_kind_and_parts_what_differs() -> None:
    names = [f"{layer_error.PARTS['encoder']}.{i}.mlp.fc2" for i in range(2)]
    names += [f"{layer_error.PARTS['global']}.{i}.attn.qkv" for i in range(3)]
    largest = {name: [10.0 * i, 1.0] for i, name in enumerate(names, 1)}
    sqnr = {name: 20.0 + i for i, name in enumerate(names)}
    assert layer_error.table(largest, {"mine": sqnr}).splitlines() == [
        "| layer | largest input: special tokens, patches | `mine` |",
        "|---|---|---|",
        "| encoder fc2, block 0 | 10.0, 1.0 | 20.0 |",
        "| encoder fc2, block 1 | 20.0, 1.0 | 21.0 |",
        "| global qkv | 50.0, 1.0 | 22.0 / 23.0 |",
    ]


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        layer_error, "CONFIG", {**layer_error.CONFIG, "embed_dim": 128, "encoder_num_heads": 2, "num_heads": 2}
    )
    layer_error.main(["--recipes", "int8_dynamic", "int8_rotated", "int8_static", "--out", str(tmp_path / "out.json")])
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 3 * 3 + 3 + 2
    sqnr = json.loads((tmp_path / "out.json").read_text())["sqnr_db"]
    peak = "aggregator.patch_embed.blocks.0.mlp.fc2"
    assert sqnr["int8_rotated"][peak] > sqnr["int8_dynamic"][peak] + 6
