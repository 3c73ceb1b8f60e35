"""Networks on the meta device, for which no weights are drawn."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vggt_int8.model import VGGT, VGGTConfig
from vggt_int8.model.unfilled import NoInitialWeights, unfilled

SIZES = {"img_size": 28, "embed_dim": 32, "encoder_depth": 1, "encoder_num_heads": 2, "depth": 1, "num_heads": 2}
CONFIG = VGGTConfig(**SIZES, camera_depth=1, camera_num_heads=2, dpt_layers=[0, 0, 0, 0], enable_track=False)


def test_it_is_the_network_without_values() -> None:
    network, filled = unfilled(VGGT, CONFIG), VGGT(CONFIG)
    assert type(network) is VGGT
    parameters = [{name: (x.shape, x.requires_grad) for name, x in n.named_parameters()} for n in (network, filled)]
    assert parameters[0] == parameters[1]
    assert network.state_dict().keys() == filled.state_dict().keys()
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_only_what_is_on_the_meta_device_is_not_drawn() -> None:
    with NoInitialWeights():
        for draw in (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, torch.Tensor.normal_):
            x, nowhere = torch.zeros(3, 3), torch.zeros(3, 3, device="meta")
            assert draw(x) is x
            assert x.any()
            assert draw(nowhere) is nowhere
        x.copy_(torch.ones(3, 3))
    assert bool(x.all())


@pytest.mark.slow
def test_building_and_loading_ask_pytorch_for_no_random_number(tmp_path: Path) -> None:
    VGGT(CONFIG).save_pretrained(tmp_path)
    for network in (lambda: unfilled(VGGT, CONFIG), lambda: VGGT.from_pretrained(tmp_path)):
        with torch.profiler.profile() as profile:
            network()
        assert not {event.name for event in profile.events()} & {"aten::uniform_", "aten::normal_"}
