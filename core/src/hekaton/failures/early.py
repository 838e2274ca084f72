"""Failures from before the processes of a run have met, told without torch until there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hekaton.environment import among_others
from hekaton.failures.exits import exits_are_errors
from hekaton.stop_signals import ending_is_known


@contextlib.contextmanager
def told_to_the_others() -> Iterator[None]:
    """What goes wrong before the processes have met reaches those that wait for this one."""
    try:
        with exits_are_errors():
            yield
    except Exception as error:
        ending_is_known()
        if among_others():
            from hekaton.failures.arrival import tell_the_others

            tell_the_others(error)
        raise
