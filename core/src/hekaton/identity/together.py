"""What every process of a run does for itself, and all or none get through."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hekaton.errors import ConfigErrors, HekatonError
from hekaton.identity.handshake import ranks_on

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Call it on every process; collective, over the default process group.

    :raises HekatonError: on all processes, when it raises one on any of them: its own words where all say the
        same, and otherwise those of the first one, and which it is.
    """
    failed: HekatonError | None = None
    result: Any = None
    try:
        result = action()
    except HekatonError as error:
        failed = error
    if dist.get_world_size() == 1:
        if failed is not None:
            raise failed
        return result  # type: ignore[no-any-return]
    flag = torch.tensor(failed is not None, dtype=torch.int32)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    if flag:
        raise _united(failed) from failed
    return result  # type: ignore[no-any-return]


def _united(mine: HekatonError | None) -> HekatonError:
    of_all: list[Any] = [None] * dist.get_world_size()
    said = None if mine is None else [(one.message, one.origin, one.hint) for one in _each(mine)]
    dist.all_gather_object(of_all, (said, platform.node()))
    different = {repr(said) for said, _ in of_all}
    if len(different) == 1:
        assert mine is not None
        mine.everywhere = True
        return mine
    first = next(said for said, _ in of_all if said is not None)
    hosts = [host for _, host in of_all]
    who = ranks_on([rank for rank, (said, _) in enumerate(of_all) if said == first], hosts)
    others = sum(said not in (None, first) for said, _ in of_all)
    problems = [
        HekatonError(f"on {who}: {message}", origin=origin, hint=hint) for message, origin, hint in first
    ]
    if others:
        problems[-1].hint += f"\n{others} more ranks have errors of their own"
    error = problems[0] if len(problems) == 1 else ConfigErrors(problems)
    error.everywhere = True
    return error


def _each(error: HekatonError) -> tuple[HekatonError, ...]:
    return error.problems if isinstance(error, ConfigErrors) else (error,)
