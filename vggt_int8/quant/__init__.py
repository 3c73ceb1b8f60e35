"""Recipe-driven quantization of any module: plan, INT8 layers, backends, report."""

from vggt_int8.quant.backends import BACKENDS, BackendError
from vggt_int8.quant.conv import Int8Conv2d, Int8ConvTranspose2d
from vggt_int8.quant.linear import Int8Linear
from vggt_int8.quant.plan import LayerPlan, make_plan
from vggt_int8.quant.quantize import quantize_module
from vggt_int8.quant.report import LayerReport, QuantizationReport, estimate_model_size, quantization_report

__all__ = [
    "BACKENDS",
    "BackendError",
    "Int8Conv2d",
    "Int8ConvTranspose2d",
    "Int8Linear",
    "LayerPlan",
    "LayerReport",
    "QuantizationReport",
    "estimate_model_size",
    "make_plan",
    "quantization_report",
    "quantize_module",
]
