"""Why torchao's observers are not used: its scales have other codes, and its MSE observer forgets all batches but one.

When one of these tests fails, its library has changed, and the reason in `calibration/observers.py` with it.
"""

import pytest
import torch

from vggt_int8.kernels.reference import absmax_scale, quantize
from vggt_int8.quiet import quiet_import

with quiet_import():
    from torchao.quantization import PerTensor
    from torchao.quantization.observer import AffineQuantizedMinMaxObserver, AffineQuantizedMSEObserver
    from torchao.quantization.quant_primitives import MappingType


def observer(kind: type, **options: object) -> torch.nn.Module:
    return kind(
        MappingType.SYMMETRIC, torch.int8, granularity=PerTensor(), eps=1e-12, scale_dtype=torch.float32, **options
    )


def test_its_symmetric_scale_has_other_codes() -> None:
    x = torch.linspace(-1, 1, 1000).view(10, 100)
    minmax = observer(AffineQuantizedMinMaxObserver)
    minmax(x)
    scale, _ = minmax.calculate_qparams()
    assert scale.item() == pytest.approx(1 / 127.5)
    assert not torch.equal(quantize(x, scale), quantize(x, absmax_scale(x, dim=(0, 1))))


def test_its_mse_observer_forgets_earlier_batches() -> None:
    large, small = torch.linspace(-10, 10, 1000).view(10, 100), torch.linspace(-1, 1, 1000).view(10, 100)
    both, last = observer(AffineQuantizedMSEObserver, steps=10), observer(AffineQuantizedMSEObserver, steps=10)
    both(large)
    both(small)
    last(small)
    assert both.calculate_qparams()[0].item() == last.calculate_qparams()[0].item()
