"""Start real processes for a test: a function on several ranks, or a verb of ``hekaton``.

They are forked from one server a test run, which has torch, hekaton and the installed plugins imported: a
process is at its first line after some milliseconds instead of seconds. The server starts when the first
process is asked for, and ends with the tests. Nothing that a test patches in its own process reaches them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hekaton.testing.child import ProcessRequest
from hekaton.testing.process import RunningProcess

GRACE = 2.0
"""Seconds that the other ranks of a command have to end by themselves, after one has failed."""


@dataclass(frozen=True)
class Finished:
    """What a process left.

    :param returncode: its exit status, negative for a signal.
    """

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class FinishedCommand(Finished):
    """What a command left: of rank 0, but the status of the first rank that failed.

    :param ranks: what each rank left.
    """

    ranks: tuple[Finished, ...]


def run_processes(
    file: str | Path,
    function: str,
    *,
    processes: int,
    timeout: float = 90.0,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
    **arguments: Any,
) -> tuple[Finished, ...]:
    """Call ``function(**arguments)`` of a Python file on ``processes`` processes with one thread each.

    The environment is that of torchrun (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``,
    ``MASTER_PORT``), so that ``torch.distributed.init_process_group("gloo")`` works in the function. Warnings
    are errors.

    :param cwd: the folder to run in; the current one.
    :param environment: all their variables but those; the variables of this process.
    :param fresh: start interpreters instead of forking the processes.
    :param arguments: JSON values.
    :returns: what each rank left.
    :raises AssertionError: with the output of the processes that failed, or with the stack of those that were
        not done in ``timeout`` seconds.
    """
    requests = _requests(
        "hekaton.testing.call",
        [str(file), function, json.dumps(arguments)],
        processes=processes,
        cwd=cwd,
        environment={**(os.environ if environment is None else environment), "CUDA_VISIBLE_DEVICES": ""},
        ranks=True,
    )
    with _started(requests, fresh=fresh) as running:
        failed, late = _wait(running, timeout, grace=0.0)
        if failed or late:
            how = {rank: f"status {running[rank].poll()}" for rank in failed}
            how |= dict.fromkeys(late, f"not done after {timeout:g} s")
            text = "\n".join(
                f"--- rank {rank}, {how[rank]}\n{running[rank].output()}" for rank in sorted(how)
            )
            raise AssertionError(f"{function} on {processes} processes:\n{text}")
        return tuple(_finished(process) for process in running)


def run_command(
    *arguments: str,
    processes: int = 1,
    timeout: float = 100.0,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    warnings: str = "error",
    fresh: bool = False,
) -> FinishedCommand:
    """Run ``hekaton ARGUMENTS`` to its end, whatever its status.

    Several processes are ranks with the environment of torchrun and one thread each. When one of them fails,
    the others have two seconds to end, too, before they are killed.

    :param cwd: the folder to run it in; the current one.
    :param environment: all its variables; those of this process.
    :param warnings: the action of ``python -W``; empty for Python's own filters.
    :param fresh: start interpreters instead of forking the processes, to test the start itself.
    :raises AssertionError: with the output and the stack of the ranks that were not done in ``timeout``
        seconds.
    """
    requests = _requests(
        "hekaton", arguments, processes=processes, cwd=cwd, environment=environment, warnings=warnings
    )
    with _started(requests, fresh=fresh) as running:
        failed, late = _wait(running, timeout, grace=GRACE)
        if late and not failed:
            text = "\n".join(
                f"--- rank {rank}, not done after {timeout:g} s\n{running[rank].output()}" for rank in late
            )
            raise AssertionError(f"hekaton {' '.join(arguments)}:\n{text}")
        for process in running:
            process.close()
        ranks = tuple(_finished(process) for process in running)
        status = ranks[failed[0]].returncode if failed else 0
        return FinishedCommand(status, ranks[0].stdout, ranks[0].stderr, ranks)


@contextlib.contextmanager
def start_command(
    *arguments: str,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    warnings: str = "error",
    fresh: bool = False,
) -> Iterator[RunningProcess]:
    """``hekaton ARGUMENTS`` as a process that runs beside the test, and is killed at the end of the block.

    The parameters are those of :func:`run_command`.
    """
    requests = _requests("hekaton", arguments, cwd=cwd, environment=environment, warnings=warnings)
    with _started(requests, fresh=fresh) as (process,):
        yield process


@contextlib.contextmanager
def start_function(
    file: str | Path,
    function: str,
    *,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    fresh: bool = False,
    **arguments: Any,
) -> Iterator[RunningProcess]:
    """``function(**arguments)`` of a Python file as a process that runs beside the test, and is killed at the
    end of the block.

    The parameters are those of :func:`run_processes`.
    """
    call = [str(file), function, json.dumps(arguments)]
    requests = _requests("hekaton.testing.call", call, cwd=cwd, environment=environment)
    with _started(requests, fresh=fresh) as (process,):
        yield process


def _requests(
    module: str,
    arguments: Sequence[str],
    *,
    processes: int = 1,
    cwd: str | Path | None = None,
    environment: Mapping[str, str] | None = None,
    warnings: str = "error",
    ranks: bool = False,
) -> list[ProcessRequest]:
    """One per process; the streams are the names of files, to be put into a folder."""
    variables = dict(os.environ if environment is None else environment)
    requests = []
    port = str(_free_port())
    for rank in range(processes):
        torchrun = {
            "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        requests.append(
            ProcessRequest(
                module=module,
                arguments=list(arguments),
                environment=variables | (torchrun if ranks or processes > 1 else {}),
                cwd=os.path.abspath(cwd or os.curdir),
                stdout=f"{rank}-stdout",
                stderr=f"{rank}-stderr",
                warnings=warnings,
            )
        )
    return requests


@contextlib.contextmanager
def _started(requests: Sequence[ProcessRequest], *, fresh: bool) -> Iterator[list[RunningProcess]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = []
        for request in requests:
            placed = replace(
                request,
                stdout=os.path.join(folder, request.stdout),
                stderr=os.path.join(folder, request.stderr),
            )
            running.append(stack.enter_context(RunningProcess(placed, fresh=fresh)))
        yield running


def _finished(process: RunningProcess) -> Finished:
    assert process.returncode is not None
    return Finished(process.returncode, process.stdout, process.stderr)


def _wait(running: list[RunningProcess], timeout: float, *, grace: float) -> tuple[list[int], list[int]]:
    """The ranks that failed, and those that were not done in time, which have then written their stacks.

    :param grace: seconds for the others to end, after one has failed.
    """
    end = time.monotonic() + timeout
    while True:
        statuses = [process.poll() for process in running]
        failed = [rank for rank, status in enumerate(statuses) if status not in (None, 0)]
        late = [rank for rank, status in enumerate(statuses) if status is None]
        if not late or (failed and grace <= 0):
            return failed, []
        if time.monotonic() > end:
            break
        if failed:
            end, grace = min(end, time.monotonic() + grace), float("inf")
        time.sleep(0.005)
    if failed:
        return failed, []
    for rank in late:
        running[rank].show_stack()
    return [], late


def _free_port() -> int:
    """Below those that the system gives to connections, so that none of them takes it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
