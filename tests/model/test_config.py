"""`VGGTConfig`: defaults, partial files, and errors that name the value."""

import json
from pathlib import Path

import pytest

from vggt_int8.model import VGGTConfig


def test_a_file_with_three_fields_loads(tmp_path: Path) -> None:
    fields = {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert VGGTConfig.from_pretrained(tmp_path).to_diff_dict() == VGGTConfig().to_diff_dict()


def test_saving_keeps_every_field(tiny_config: VGGTConfig, tmp_path: Path) -> None:
    tiny_config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "vggt"
    unread = {"architectures": None}  # written by whoever saves a model, such as other tests
    assert VGGTConfig.from_pretrained(tmp_path).to_dict() == tiny_config.to_dict() | unread


def test_track_uv_embedding_is_resolved_and_can_be_set() -> None:
    assert VGGTConfig().track_uv_embedding is False
    assert VGGTConfig(embed_dim=384).track_uv_embedding is True
    assert VGGTConfig(embed_dim=384, track_uv_embedding=False).track_uv_embedding is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 1000}, "embed_dim must be a multiple of 16 .*got 1000"),
        ({"embed_dim": 96, "num_heads": 16, "encoder_num_heads": 16}, "embed_dim must be a multiple of 64 .*got 96"),
        ({"img_size": 500}, r"img_size must be a multiple of 14 .*got 500"),
        ({"img_size": "518"}, "img_size.*expected int.*'518'"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"num_register_tokens": -1}, "num_register_tokens must not be negative, got -1"),
        ({"rope_freq": 0.0}, "rope_freq must be above 0, got 0.0"),
        ({"camera_num_heads": 3}, "camera_num_heads 3"),
        ({"dpt_layers": [4, 11, 17]}, r"dpt_layers must have 4 entries.*\[4, 11, 17\]"),
        ({"dpt_layers": [4, 11, 17, 24]}, r"dpt_layers must lie in 0 … 23.*\[4, 11, 17, 24\]"),
        ({"dpt_layers": [-1, 11, 17, 23]}, "dpt_layers must lie in"),
        ({"dpt_out_channels": [256, 512, 1024, 1022]}, "dpt_out_channels must be multiples of 4.*1022"),
        ({"dpt_features": 100}, "dpt_features must be a multiple of 8 .*got 100"),
        ({"track_features": 30}, "track_features must be a multiple of 4 .*got 30"),
        ({"track_hidden_size": 100}, "track_hidden_size must be a multiple of 8 .*got 100"),
    ],
)
def test_impossible_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Exception, match=f"(?s){message}"):
        VGGTConfig(**fields)


def test_sizes_of_absent_heads_do_not_matter() -> None:
    VGGTConfig(depth=4, enable_depth=False, enable_point=False, enable_track=False, track_features=30)
