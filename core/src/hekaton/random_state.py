"""The random generators of a process, put back after others have drawn from them."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Keep the state of the generators of Python, numpy and torch."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cuda = range(torch.cuda.device_count()) if cuda_in_use() else ()
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def cuda_in_use() -> bool:
    """Whether this process has touched a CUDA device."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
