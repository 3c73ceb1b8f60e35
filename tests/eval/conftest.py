"""A small network with random weights that all tests of evaluation read and none changes."""

import pytest
import torch

from vggt_int8.model import VGGT, VGGTConfig

TINY = {
    "img_size": 32, "patch_size": 8, "embed_dim": 128, "encoder_depth": 2, "encoder_num_heads": 2, "depth": 2,
    "num_heads": 2, "camera_depth": 1, "camera_num_heads": 4, "dpt_features": 32,
    "dpt_out_channels": [32, 32, 32, 32], "dpt_layers": [0, 0, 1, 1], "enable_track": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def model() -> VGGT:
    torch.manual_seed(0)
    return VGGT(VGGTConfig(**TINY)).eval()


@pytest.fixture(scope="session")
def strong_model() -> VGGT:
    """The same with branches as strong as after training: at first they are scaled down to almost nothing."""
    torch.manual_seed(0)
    model = VGGT(VGGTConfig(**TINY)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.2)
            elif name.endswith(("_token", "_tokens")):
                parameter.normal_(std=0.3)
            elif name.endswith("weight") and parameter.dim() == 2:
                torch.nn.init.xavier_uniform_(parameter)
        model.camera_head.pose_branch.fc2.bias[7:] = 1  # a field of view, and not at the ReLU's edge
    return model
