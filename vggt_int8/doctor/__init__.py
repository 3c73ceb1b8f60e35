"""Check whether this machine can run INT8 VGGT, with which kernels, and what is missing.

`facts` collects the state of the machine, `try_it` runs the embedded model, and `findings` evaluates both. All of them
exchange plain data, so tests can evaluate machines that are not available.
"""

from vggt_int8.doctor.facts import Facts, Gpu, look
from vggt_int8.doctor.findings import Finding, findings
from vggt_int8.doctor.trial import Trial, try_it

__all__ = ["Facts", "Finding", "Gpu", "Trial", "findings", "look", "try_it"]
