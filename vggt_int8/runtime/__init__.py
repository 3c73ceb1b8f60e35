"""The fused execution of a quantized VGGT: fused blocks over the plain network, CUDA graphs, chunked heads, memory
plans.
"""

from vggt_int8.runtime.memory import Plan
from vggt_int8.runtime.report import RuntimeReport
from vggt_int8.runtime.runtime import Runtime

__all__ = ["Plan", "Runtime", "RuntimeReport"]
