"""SIGTERM, SIGUSR1 and SIGINT: end the step in hand, save, and stop with a status that says to start again.

The kernel hands a signal to a thread of its own, through a pipe: a main thread that waits in a collective
would see it only when the collective ends, and a collective that hangs does not end.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from hekaton.environment import among_others
from hekaton.errors import AGAIN, INTERRUPTED

if TYPE_CHECKING:
    from hekaton.control import RunControl

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""
ONE_SIGNAL = 1.0
"""Seconds within which signals count as one: a terminal sends Ctrl-C to torchrun and its workers alike, and
torchrun passes on its own."""
IMPORTED = 10.0
"""Seconds that a signal waits for what is imported before a run, such as plugins, which may hang."""
LEARNS = 3.0
"""Seconds in which a process that srun ends before the first step hears from another one that has failed."""


@contextlib.contextmanager
def stop_on_signals(control: RunControl, *, limit: float) -> Iterator[None]:
    """Have a first signal ask for a save and a stop; a second one ends the process at once.

    A process that is still here ``limit`` seconds after the first shows the stacks of its threads and ends
    with ``128 + signal``, whatever it is waiting for. Does nothing outside of the main thread, where Python
    installs no handlers.

    In a process that is not the run's alone, such as a notebook's, a second SIGINT, and the end of that time
    after a first, is answered as before the run: Python raises ``KeyboardInterrupt``.

    :param limit: in seconds; 0 waits for as long as it takes.
    """
    before = None if _WHOLE else signal.getsignal(signal.SIGINT)
    interrupts = before if callable(before) else None
    with _signals_go_to(lambda receiving: _watch(receiving, control, limit, raises=interrupts is not None)):
        if interrupts is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _second_to(interrupts, control))
        try:
            yield
        except BaseException:
            ending_is_known()
            raise
        if control.is_over:
            ending_is_known()


@dataclass
class _WholeRun:
    """:param is_over: the run has ended, well on all ranks or with an error: its status is known."""

    is_over: bool = False


_WHOLE: list[_WholeRun] = []
"""The one of :func:`end_on_signals`, while there is one: signals are of the process, and so is it."""


@contextlib.contextmanager
def end_on_signals(others: Callable[[], bool] = among_others) -> Iterator[None]:
    """Around a whole run: a signal before the first step ends the process at once. All that was saved is
    there, so its status says to start it again; after SIGINT, that it was interrupted.

    Under ``srun`` it is that of the signal: srun ends tasks by SIGTERM when another one has failed, and gives
    the highest status of all, so that an error would be taken for a run that is to be started again. The
    status of the signal is higher than that of an error: a process has ``LEARNS`` seconds to end with that.

    Once the run is over a signal changes nothing: srun ends tasks as well when another one has ended with the
    status that says to start the run again, or with that of an error which this one has, too. One that comes
    more than ``ONE_SIGNAL`` later ends the process. Of several processes, each ignores signals from here to
    its end, which is a matter of a second.

    :param others: whether this process is one of several that srun or another launcher started.
    """
    run = _WholeRun()
    _WHOLE.append(run)
    try:
        with _signals_go_to(
            lambda receiving: _end_at_first(receiving, run, others),
            ignored_after=lambda: run.is_over and others(),
        ):
            try:
                yield
            except BaseException:
                ending_is_known()
                raise
    finally:
        _WHOLE.pop()


def ending_is_known() -> None:
    """Called once the run has ended well, or an error ends it: no signal changes its status from here on."""
    if _WHOLE:
        _WHOLE[-1].is_over = True


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Have signals wait until :func:`end_on_signals` answers them: what is imported before takes a while.

    One that has waited for ``IMPORTED`` seconds ends the process, with the place that it is at.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    answered = threading.Event()
    threading.Thread(target=_end_if_unanswered, args=(answered, threading.get_ident()), daemon=True).start()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        answered.set()


def _end_if_unanswered(answered: threading.Event, thread: int) -> None:
    waited = 0.0
    while not answered.wait(0.25):
        waiting = signal.sigpending() & set(SIGNALS)
        waited += 0.25 if waiting else 0.0
        if waited <= IMPORTED:
            continue
        number, place = waiting.pop(), traceback.extract_stack(sys._current_frames().get(thread))[-1]
        print(
            f"error: received {signal.Signals(number).name} before the run, in {place.filename}, line "
            f"{place.lineno}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(status_without_a_save(number, others=among_others()))


@contextlib.contextmanager
def _signals_go_to(
    watch: Callable[[socket.socket], None], *, ignored_after: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """
    :param watch: reads the numbers of signals, on a thread, until there are no more.
    :param ignored_after: asked at the end; signals have their former handlers again if it is false.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    watcher = threading.Thread(target=watch, args=(receiving,), daemon=True)
    watcher.start()
    fd = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _received) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        ignored = ignored_after()
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        signal.set_wakeup_fd(fd)
        sending.shutdown(socket.SHUT_RDWR)  # processes that were forked, as those that read data, have it too
        sending.close()
        watcher.join()
        receiving.close()


def _received(number: int, frame: object) -> None:
    """Takes the place of the default action; the watching thread acts."""


def _second_to(before: Callable[[int, FrameType | None], Any], control: RunControl) -> Callable[..., None]:
    """The handler that leaves the first SIGINT to the watching thread, and others to the one ``before``."""
    first: float | None = None

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first > ONE_SIGNAL and not control.is_over:
            before(number, frame)

    return answer


def status_without_a_save(number: int, *, others: bool) -> int:
    """Of a process that a signal ends before the first step: see :func:`end_on_signals`."""
    if number == signal.SIGINT:
        return INTERRUPTED
    return AGAIN if _has_torchrun() or not others else 128 + number


def _end_at_first(receiving: socket.socket, run: _WholeRun, others: Callable[[], bool]) -> None:
    first: float | None = None
    while numbers := receiving.recv(1):
        if numbers[0] not in SIGNALS:
            continue
        now = time.monotonic()
        first = first or now
        # A launcher, which others() may be true for as well, has nobody to hear from.
        hears = numbers[0] != signal.SIGINT and among_others() and not _has_torchrun()
        if hears and not run.is_over and _closes(receiving, LEARNS):
            return
        if run.is_over and now - first <= ONE_SIGNAL:
            continue
        if not _has_torchrun():  # which ends those that are left when one has failed
            name = signal.Signals(numbers[0]).name
            print(f"error: received {name} while there was nothing to save", file=sys.stderr, flush=True)
        os._exit(status_without_a_save(numbers[0], others=others()))


def _closes(receiving: socket.socket, seconds: float) -> bool:
    """Whether it is closed before a signal or that time comes."""
    receiving.settimeout(seconds)
    try:
        return not receiving.recv(1)
    except TimeoutError:
        return False
    finally:
        receiving.settimeout(None)


def _watch(receiving: socket.socket, control: RunControl, limit: float, *, raises: bool) -> None:
    """:param raises: a second SIGINT is the main thread's to answer."""
    first: float | None = None
    ended = signal.SIGTERM
    while True:
        left = None if first is None or not limit else max(0.0, first + limit - time.monotonic())
        receiving.settimeout(left)
        try:
            numbers = receiving.recv(1)
        except TimeoutError:
            if raises and ended == signal.SIGINT:
                limit = 0.0
                _thread.interrupt_main()
                continue
            _end(ended, f"the run has not ended {limit:g} s after {ended.name}")
        if not numbers:
            return
        if numbers[0] not in SIGNALS:
            continue
        if first is None:
            first, ended = time.monotonic(), signal.Signals(numbers[0])
            control.ask(save=True, stop=True, again=True, reason=f"received {ended.name}")
        elif raises and numbers[0] == signal.SIGINT:
            continue
        elif time.monotonic() - first > ONE_SIGNAL and not control.is_over:
            _end(signal.Signals(numbers[0]), "a second signal ends the run at once", stacks=False)


def _end(number: signal.Signals, why: str, *, stacks: bool = True) -> NoReturn:
    print(f"error: {why}", file=sys.stderr, flush=True)
    if stacks:
        faulthandler.dump_traceback(all_threads=True)
    os._exit(128 + number)


def _in_child() -> None:
    """In a process that a run forks, such as a worker of its loader.

    Signals that reach the whole process group are the run's to answer, and it needs this process for its last
    step: SIGTERM counts the second time, which is when the run itself ends it.
    """
    if signal.getsignal(signal.SIGTERM) is not _received:
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignored_once)


def _ignored_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)


def keep_in_worker(worker: int) -> None:
    """The ``worker_init_fn`` of a DataLoader: torch has put a handler in place of that of :func:`_in_child`,
    by which a worker ends at the first SIGTERM, whoever sent it."""
    if signal.getsignal(signal.SIGTERM) is _ignored_once:
        signal.signal(signal.SIGTERM, _ignored_once)


def stop_when_torchrun_is_gone() -> None:
    """Have the kernel send SIGTERM to this process when torchrun, which started it, is killed: nobody would
    end it, nor start the run again while it has the lock of the checkpoint folder. Linux only."""
    if _has_torchrun() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _has_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def known_end() -> float | None:
    """When the job that this process belongs to will be ended, in seconds since the epoch.

    Read from ``SLURM_JOB_END_TIME``, which SLURM sets to the start of the job plus its ``--time``.
    """
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) if end.isdecimal() else None
