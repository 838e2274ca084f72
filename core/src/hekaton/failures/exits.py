"""What ends a process from within code that is not to."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from hekaton.errors import HekatonError


@contextlib.contextmanager
def exits_are_errors() -> Iterator[None]:
    """``sys.exit()`` in code of a plugin would end a run without a word, and with the status of a success.

    :raises HekatonError: in place of ``SystemExit``, with its place.
    """
    try:
        yield
    except SystemExit as e:
        *_, last = traceback.extract_tb(e.__traceback__)
        raise HekatonError(
            f"{last.name}() was about to end the process: SystemExit({e.code!r})",
            origin=f"{last.filename}, line {last.lineno}",
            hint="raise another error there; control.ask(stop=True, reason=...) ends a run",
        ) from e
