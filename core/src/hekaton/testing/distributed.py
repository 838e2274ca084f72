"""Layouts by their short names, for tests on several processes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    """Within it, runs of this process that have the same degrees have the same meshes.

    Each group of a mesh keeps a thread of gloo that wakes up every 10 ms until the process ends.
    """
    from hekaton.mesh import ParallelDims

    build = ParallelDims.build_mesh
    ParallelDims.build_mesh = functools.cache(build)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ParallelDims.build_mesh = build  # type: ignore[method-assign]
