"""Ctrl-C, or a notebook's button, while a function of the API imports something.

An import that is interrupted leaves torch half imported: every later call of that process would end with an
error of torch's own, such as an operator that is registered twice.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_EVERY = 0.1
"""Seconds after which an interrupt that waits is tried again."""


@contextlib.contextmanager
def imports_are_finished() -> Iterator[None]:
    """Have an interrupt within an import wait for its end. Elsewhere it is answered as before, and outside of
    the main thread, where Python answers none, nothing is done."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    caller: FrameType | None = sys._getframe(2)  # beyond contextlib's; it may be within an import itself
    main, over = threading.get_ident(), threading.Event()
    waiting = ends = False

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        waiting = ends or _imports(frame, caller)
        if not waiting:
            before(number, frame)

    def try_again() -> None:
        while not over.wait(_EVERY):
            if waiting:
                signal.pthread_kill(main, signal.SIGINT)

    trying = threading.Thread(target=try_again, daemon=True)
    signal.signal(signal.SIGINT, answer)
    trying.start()
    try:
        yield
    finally:
        ends = True
        over.set()
        trying.join()
        caller = None
        if signal.getsignal(signal.SIGINT) is answer:
            signal.signal(signal.SIGINT, before)
        if waiting:
            before(signal.SIGINT, None)


def _imports(frame: FrameType | None, until: FrameType | None) -> bool:
    """Whether one of the frames up to ``until`` is an import."""
    while frame is not None and frame is not until:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
