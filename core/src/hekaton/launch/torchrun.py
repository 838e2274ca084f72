"""torchrun without its report, where a process has said what is wrong: ``python -m hekaton.launch``.

Options are those of torchrun, and ``--stop_seconds``. The exit status is that of the process that failed
first, where torchrun's would be 1. Signals are passed on to the processes, which have the time to save.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from hekaton.launchers import started_with_others
from hekaton.processor import cores
from hekaton.stop_signals import end_on_signals, status_without_a_save

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

NOTICED = 10
"""Seconds in which a process that was killed is noticed; torchrun itself kills after 30."""
STOP_SECONDS = 630.0
"""Somewhat more than ``fault.stop_seconds``, after which a process ends by itself."""


def main(arguments: Sequence[str]) -> int:
    """Start processes as torchrun does, and wait for them.

    ``--stop_seconds N`` before the module or script is how long the processes have to end after a signal. One
    that comes before they are started, while other machines are waited for, ends this process at once, with
    the status of a run in which nothing was there to save.
    """
    with contextlib.ExitStack() as until_start:
        until_start.enter_context(end_on_signals(started_with_others))
        return _launched(list(arguments), until_start)


def _launched(arguments: list[str], until_start: contextlib.ExitStack) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousTimeoutError
    from torch.distributed.run import determine_local_world_size, parse_args, run

    from hekaton.launch import agent

    limit, rest = _stop_seconds(arguments)
    options = parse_args(rest)  # type: ignore[no-untyped-call]
    agent.use(
        limit=limit,
        start=until_start.close,
        end=lambda failures: os._exit(_status(ChildFailedError("", dict(failures)), agent.Agent.passed_on)),
    )
    if options.max_restarts:
        # Processes that start again would meet at the store of those before, with all that is in it.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    processes = determine_local_world_size(options.nproc_per_node)
    if threads := threads_of_each(processes):
        os.environ["OMP_NUM_THREADS"] = str(threads)
        print(f"OMP_NUM_THREADS = {threads}: {cores()} cores, {processes} processes", file=sys.stderr)
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as e:
        return _status(e, agent.Agent.passed_on)
    except SignalException as e:
        print(f"error: received {e.sigval.name} before the processes were started", file=sys.stderr)
        return status_without_a_save(e.sigval, others=started_with_others())
    except RendezvousTimeoutError:
        print(
            f"error: not all {options.nnodes} machines have come to {options.rdzv_endpoint} in time "
            "(--rdzv_conf=join_timeout=N, 600 s by default)",
            file=sys.stderr,
        )
        return 1
    except RendezvousConnectionError as e:
        why = str(e.__cause__ or e).splitlines()[0]
        print(f"error: cannot reach the machine of {options.rdzv_endpoint}: {why}", file=sys.stderr)
        return 1
    return 0


def _status(error: ChildFailedError, passed_on: Collection[int]) -> int:
    """The status of the launcher, with a message where no process could give one.

    :param passed_on: the signals that processes were sent: what one of them killed had not begun to answer.
    """
    rank, failure = first_failure(error)
    if -failure.exitcode in passed_on:
        return status_without_a_save(-failure.exitcode, others=started_with_others())
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was ended by {name}", file=sys.stderr, flush=True)
        return 128 - failure.exitcode
    return failure.exitcode


def first_failure(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The rank that failed first. One that was killed says nothing: where this was noticed soon after another
    said that it has failed, the other did because of it."""
    rank, first = error.get_first_failure()
    for other, failure in error.failures.items():
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        if killed and failure.timestamp <= first.timestamp + NOTICED:
            return other, failure
    return rank, first


def _stop_seconds(arguments: list[str]) -> tuple[float, list[str]]:
    """The limit, and the arguments of torchrun; what follows the module or script is not ours."""
    own = next((i for i, word in enumerate(arguments) if word in ("-m", "--module")), len(arguments))
    parser = argparse.ArgumentParser("hekaton.launch", add_help=False, allow_abbrev=False)
    parser.add_argument("--stop_seconds", type=_seconds, default=STOP_SECONDS)
    known, before = parser.parse_known_args(arguments[:own])
    return known.stop_seconds, before + arguments[own:]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError(text)
    return seconds


def threads_of_each(processes: int) -> int:
    """The threads that each of several processes of this machine gets where ``OMP_NUM_THREADS`` is not set:
    torchrun would give one. 0 where it is set, and for a single process, which has all cores by itself."""
    if processes < 2 or "OMP_NUM_THREADS" in os.environ:
        return 0
    return max(1, cores() // processes)
