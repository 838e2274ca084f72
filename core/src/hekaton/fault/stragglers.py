"""Ranks that compute more slowly than the others, which all then wait for them.

In a step with collectives every rank takes as long as the slowest. So what is compared is the time that a
rank's own operators take: a step is recorded by torch's profiler, and the operators of communication, in
which the others wait, are left out. On CUDA it is the time of the kernels; on a CPU that of the operators.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hekaton.failures.whereabouts import Whereabouts
from hekaton.torch_versions import expect_cleared_events

log = logging.getLogger("hekaton")

COMMUNICATES = ("c10d", "_c10d_functional", "c10d_functional", "fsdp", "FSDP", "gloo", "nccl", "symm_mem")
"""What the names of operators and kernels begin with that wait for other ranks."""
NOISE = 0.01
"""Seconds above the median that are noise of the machine, whatever the factor."""


@dataclass(frozen=True)
class OwnTime:
    """Of one rank in one step, in seconds.

    :param stage: of the pipeline; only ranks of the same one have the same to compute.
    :param wait: for data.
    """

    host: str
    stage: int
    compute: float
    wait: float

    @property
    def own(self) -> float:
        return self.compute + self.wait


class Stragglers:
    """Compares the ranks every so many steps. Rank 0 names those that were slow in the last comparison, too:
    other work on a machine makes now this rank slow, now that one."""

    def __init__(self, *, every: int, factor: float, stage: int, cuda: bool) -> None:
        """:param factor: of the median, from which on a rank is slow; :param stage: of this rank."""
        self._every = every
        self._factor = factor
        self._stage = stage
        self._cuda = cuda
        self._slow: Set[int] = frozenset()

    @contextlib.contextmanager
    def measured(self, step: int, where: Whereabouts) -> Iterator[None]:
        """Around a step; collective in those that are measured. A rank that traces it is not compared."""
        if step % self._every:
            yield
            return
        mine: OwnTime | None = None
        if torch.autograd.profiler._is_profiler_enabled:  # on this rank, as for a trace on request
            yield
        else:
            expect_cleared_events()
            with _seconds_in("data", where) as waited:
                kinds = torch.profiler.ProfilerActivity
                with torch.profiler.profile(activities=[kinds.CUDA if self._cuda else kinds.CPU]) as profiler:
                    yield
            computed = compute_of(profiler.events() or (), cuda=self._cuda)
            mine = OwnTime(socket.gethostname(), self._stage, computed, sum(waited))
        where.at("comparing ranks")
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        if dist.get_rank() == 0:
            measured = {rank: one for rank, one in enumerate(ranks) if one is not None}
            slow = slow_ones(measured, factor=self._factor)
            for rank in sorted(slow.keys() & self._slow):
                log.warning("step %d: %s", step, slow[rank])
            self._slow = slow.keys()


@contextlib.contextmanager
def _seconds_in(phase: str, where: Whereabouts) -> Iterator[list[float]]:
    """The seconds that the process is in a phase, each time."""
    spent: list[float] = []
    entered: list[float] = []

    def moved(to: str) -> None:
        now = time.perf_counter()
        spent.extend(now - then for then in entered)
        entered[:] = [now] if to == phase else []

    where.follow.append(moved)
    try:
        yield spent
    finally:
        where.follow.remove(moved)


def compute_of(events: Sequence[Any], *, cuda: bool) -> float:
    """The seconds of the operators, or kernels, that do not communicate."""
    found = 0.0
    for event in events:
        on_device = event.device_type.name != "CPU"
        name = event.name.removeprefix("void ")
        if on_device != cuda or name.startswith(COMMUNICATES) or (not cuda and "::" not in name):
            continue
        found += event.self_device_time_total if cuda else event.self_cpu_time_total
    return found / 1e6


def slow_ones(ranks: Mapping[int, OwnTime], *, factor: float) -> dict[int, str]:
    """Rank -> a line, for each that takes more than ``factor`` times the median of its stage, and ``NOISE``
    more."""
    stages: dict[int, dict[int, OwnTime]] = defaultdict(dict)
    for rank, one in ranks.items():
        stages[one.stage][rank] = one
    lines = {}
    for those in stages.values():
        median = statistics.median_low([one.own for one in those.values()])
        for rank, one in those.items():
            if one.own > max(factor * median, median + NOISE):
                lines[rank] = (
                    f"rank {rank} on {one.host} takes {one.own / max(median, 1e-9):.1f} times as long as "
                    f"the median rank: {one.compute:.3f} s of computation and {one.wait:.3f} s of waiting "
                    f"for data, against {median:.3f} s"
                )
    return lines
