"""What the CPU can do."""

from __future__ import annotations

import functools
import os
from pathlib import Path

BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Instructions on bfloat16: AVX512-BF16, AMX, and those of ARM. Without them a product in bfloat16 was
measured to take 11 times as long as in float32."""


CPUINFO = Path("/proc/cpuinfo")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def has_fast_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16; taken to be so where it does not say."""
    found = _capabilities()
    return not found or bool(found & BFLOAT16)


def _capabilities() -> frozenset[str]:
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.13
    if get_capabilities is not None:
        return frozenset(name for name, there in get_capabilities().items() if there is True)
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return frozenset(
        word for name, _, value in lines if name.strip() in ("flags", "Features") for word in value.split()
    )
