"""Layouts by their short names, for tests on several processes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hekaton.testing.launcher import run_processes

__all__ = ["NamedLayout", "run_processes", "shared_meshes"]

_DEGREES = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "cp": "context_parallel_degree",
    "tp": "tensor_parallel_degree",
    "pp": "pipeline_parallel_degree",
    "ep": "expert_parallel_degree",
    "etp": "expert_tensor_parallel_degree",
}
_FOLDED = ("ep", "etp")
"""Axes over ranks that others have made."""


@dataclass(frozen=True)
class NamedLayout:
    """A layout by its short name.

    :param name: the degrees that are not 1, as ``shard2 tp2``; empty for a single process.
    """

    name: str

    @property
    def degrees(self) -> dict[str, int]:
        """Axis (``replicate``, ``shard``, ``cp``, ``tp``, ``pp``, ``ep``, ``etp``) -> degree."""
        words = [re.fullmatch(r"([a-z]+)(\d+)", word) for word in self.name.split()]
        assert all(word is not None and word[1] in _DEGREES for word in words), self.name
        return dict.fromkeys(_DEGREES, 1) | {word[1]: int(word[2]) for word in words if word is not None}

    @property
    def processes(self) -> int:
        return math.prod(degree for axis, degree in self.degrees.items() if axis not in _FOLDED)

    @property
    def dp(self) -> int:
        """Ranks that read different rows of the batch."""
        return self.degrees["replicate"] * self.degrees["shard"]

    @property
    def flags(self) -> list[str]:
        """The flags of ``hekaton train`` that choose it."""
        return [
            word
            for axis, degree in self.degrees.items()
            for word in (f"--parallelism.{_DEGREES[axis]}", str(degree))
        ]


@contextmanager
def shared_meshes() -> Iterator[None]:
    """Within it, runs of this process that have the same degrees have the same meshes, and all groups of gloo
    have one device.

    Otherwise each group has a device of its own, whose thread wakes up every 10 ms until the process ends.
    """
    from hekaton.mesh import ParallelDims

    build = ParallelDims.build_mesh
    ParallelDims.build_mesh = functools.cache(build)  # type: ignore[method-assign]
    try:
        with _one_device_of_gloo():
            yield
    finally:
        ParallelDims.build_mesh = build  # type: ignore[method-assign]


@contextmanager
def _one_device_of_gloo() -> Iterator[None]:
    import torch.distributed as dist

    if not dist.is_gloo_available():
        yield
        return
    group = dist.ProcessGroupGloo
    make, device = group.__init__, group.create_default_device()

    def make_on_device(
        self: Any, store: Any, rank: int, size: int, timeout: timedelta, **others: Any
    ) -> None:
        options = group._Options()  # type: ignore[attr-defined]
        options._devices, options._timeout = [device], timeout
        for name, value in others.items():  # such as enable_reconfigure, from torch 2.14 on
            setattr(options, name, value)
        make(self, store, rank, size, options)

    group.__init__ = make_on_device  # type: ignore[method-assign]
    try:
        yield
    finally:
        group.__init__ = make  # type: ignore[method-assign]
