"""``HEKATON_TRACE=1``: each hook call on standard error, what each plugin returned, and how long it took."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hekaton.contributions import Contribution

TRACE_VARIABLE = "HEKATON_TRACE"


def is_traced() -> bool:
    """Whether hook calls are printed."""
    return os.environ.get(TRACE_VARIABLE, "") not in ("", "0")


@contextmanager
def traced(hook: str, plugin: str) -> Iterator[Callable[[object], None]]:
    """Around one call of a hook of one plugin; it is told what was returned."""
    if not is_traced():
        yield lambda returned: None
        return
    outcome = "returned nothing"

    def told(returned: object) -> None:
        nonlocal outcome
        outcome = f"returned {_shown(returned)}"

    began = time.perf_counter()
    try:
        yield told
    except BaseException as e:
        outcome = f"raised {type(e).__name__}: {e}"
        raise
    finally:
        seconds = time.perf_counter() - began
        rank = f"rank {os.environ['RANK']}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        line = f"{rank}trace: {hook} of plugin '{plugin}' {outcome} in {1000 * seconds:.2f} ms"
        print(line, file=sys.stderr, flush=True)


def _shown(returned: Any) -> str:
    if returned is None:
        return "nothing"
    if isinstance(returned, list):
        return f"[{', '.join(_shown(one) for one in returned)}]"
    if isinstance(returned, Contribution):
        return f"{type(returned).__name__} '{returned.name}'"
    return repr(returned)
