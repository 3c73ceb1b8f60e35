"""Is this machine fit for INT8 VGGT, what would run on it, and what is missing.

`facts` looks, `try_it` runs the embedded model, `findings` judges both: plain data in, plain data out, so that machines
that are not at hand can be judged in tests.
"""

from vggt_int8.doctor.facts import Facts, Gpu, look
from vggt_int8.doctor.findings import Finding, findings
from vggt_int8.doctor.trial import Trial, try_it

__all__ = ["Facts", "Finding", "Gpu", "Trial", "findings", "look", "try_it"]
