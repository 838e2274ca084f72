"""Agreement between the ranks: an error on one rank is raised on all, and none is left waiting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hekaton.errors import HekatonError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The ranks of one process group, or this process alone where there is no group."""

    group: dist.ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> Ranks:
        """The ranks of ``group``; without one, of the default group, if it is initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(group, dist.get_rank(group), dist.get_world_size(group))
        return cls(None, 0, 1)

    @property
    def alone(self) -> bool:
        """Whether there is no process group at all."""
        return not (dist.is_available() and dist.is_initialized())

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_at_first(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on rank 0 alone; elsewhere nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, group=self.group, group_dst=0)
        return values or []

    def least(self, value: int) -> int:
        """The least of the values of all ranks."""
        if self.size == 1:
            return value
        least = torch.tensor(value)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return int(least)

    def first(self, function: Callable[[], T]) -> T:
        """Call ``function`` on rank 0 alone, and return its value, or raise its error, on all ranks."""
        outcome: Any = _call(function) if self.is_first else None
        if self.size > 1:
            sent = [_portable(outcome)]
            dist.broadcast_object_list(sent, group=self.group, group_src=0)
            outcome = outcome if self.is_first else sent[0]
        if isinstance(outcome, _Failure):
            raise self._heard(outcome.error)
        return outcome  # type: ignore[no-any-return]

    def each(self, function: Callable[[], T]) -> T:
        """Call ``function`` on every rank, and return its value there, or raise one rank's error on all."""
        outcome: Any = _call(function)
        for other in self.gather(_portable(outcome) if isinstance(outcome, _Failure) else None):
            if isinstance(other, _Failure):
                raise outcome.error if isinstance(outcome, _Failure) else self._heard(other.error)
        return outcome  # type: ignore[no-any-return]

    def _heard(self, error: Exception) -> Exception:
        """The error as this rank's own: each rank prints what it raised with its number in front."""
        if isinstance(error, HekatonError) and error.rank is not None:
            error.rank = dist.get_rank()
        return error


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _call(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception as error:
        return _Failure(error)


def _portable(outcome: Any) -> Any:
    """An error that is not ours may not survive pickling: its text does."""
    if isinstance(outcome, _Failure) and not isinstance(outcome.error, HekatonError):
        return _Failure(RuntimeError(f"on another rank: {type(outcome.error).__name__}: {outcome.error}"))
    return outcome
