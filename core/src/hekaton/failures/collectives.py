"""The collectives in which this process waits, by the flight recorder of torch."""

from __future__ import annotations

import json
from typing import Any

RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")
"""Of gloo, and of NCCL where torch has it."""


def waiting() -> list[str]:
    """The collectives and messages that were begun and have not ended, the first of each process group, the
    oldest first: ``"all_reduce 12 of mesh_fsdp (float [64, 64])"``.

    Empty where ``comm.trace_buf_size`` is 0, and where another version of torch records otherwise: the report
    of a hang is made without it. May be called from any thread, and while a collective hangs.
    """
    try:
        return _waiting()
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        return []


def _waiting() -> list[str]:
    from torch._C import _distributed_c10d

    first: dict[str, dict[str, Any]] = {}
    for name in RECORDERS:
        dump = getattr(_distributed_c10d, name, None)
        entries = (
            json.loads(dump(includeCollectives=True, onlyActive=True)).get("entries", []) if dump else []
        )
        for entry in entries:
            if not entry["retired"]:
                first.setdefault(f"{name} {entry['process_group'][0]}", entry)
    return [_in_words(entry) for entry in sorted(first.values(), key=lambda entry: entry["time_created_ns"])]


def _in_words(entry: dict[str, Any]) -> str:
    operation = entry["profiling_name"].partition(":")[2] or entry["profiling_name"]
    number = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
    group, described = entry["process_group"]
    tensors = zip(entry["input_dtypes"], entry["input_sizes"], strict=False)
    shapes = ", ".join(f"{dtype.lower()} {shape}" for dtype, shape in tensors)
    return f"{operation} {number} of {described or group} ({shapes})"
