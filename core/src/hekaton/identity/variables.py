"""What of a process's environment is compared, and what is not, each with the reason."""

from __future__ import annotations

import os
from typing import Any

_OTHER_RESULTS = "products are computed otherwise"
_WAITS = "with other algorithms or protocols ranks wait for each other"
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": _OTHER_RESULTS,
    "DNNL_DEFAULT_FPMATH_MODE": _OTHER_RESULTS,
    "MKL_CBWR": _OTHER_RESULTS,
    "NCCL_ALGO": _WAITS,
    "NCCL_PROTO": _WAITS,
    "NVIDIA_TF32_OVERRIDE": _OTHER_RESULTS,
    "ONEDNN_DEFAULT_FPMATH_MODE": _OTHER_RESULTS,
    "TORCHDYNAMO_DISABLE": "models are not compiled",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _OTHER_RESULTS,
    "TORCH_COMPILE_DISABLE": "models are not compiled",
}
"""Variables by which libraries compute or communicate otherwise, and what they change."""

COMPARED = {
    "random numbers that the processor draws": "initial weights are drawn on it, whatever the device is; "
    "without AVX2, and on ARM, `normal_` gives other last bits",
    "instructions of the processor, where it is the device": "a softmax has other last bits with AVX2 and "
    "AVX512, and replicas would drift apart",
    "threads of a process, where the processor is the device": "a sum over many values has other last bits",
}
"""What else of a processor must be the same on all machines, and why."""

NOT_COMPARED = {
    "locale, encoding of texts (`LANG`, `LC_ALL`, `PYTHONUTF8`)": "files are read and written as UTF-8, "
    "and names are sorted by their characters",
    "`PYTHONHASHSEED`": "each process has its own by default: nothing depends on the order of a set",
    "threads of a process on other devices": "random numbers are the same with any number of them",
    "instructions of the processor beside other devices": "the random numbers that it draws are compared",
    "clocks, time zones and host names": "nothing is ordered by them",
}
"""What may be different on each machine without a notice, and why."""


def build(section: Any, config: Any) -> dict[str, str]:
    """The variables that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
