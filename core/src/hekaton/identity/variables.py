"""Variables of the environment by which libraries compute or communicate otherwise."""

from __future__ import annotations

import os
from typing import Any

NAMES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "TORCHDYNAMO_DISABLE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_COMPILE_DISABLE",
)
"""With other algorithms or protocols of NCCL ranks wait for each other; the others change results."""


def build(section: Any, config: Any) -> dict[str, str]:
    """Those that are set."""
    return {name: os.environ[name] for name in NAMES if name in os.environ}
