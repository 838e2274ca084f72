"""torchrun without its report, where a process has said what is wrong: ``python -m hekaton.launch``.

Options are those of torchrun. The exit status is that of the process that failed first, where torchrun's
would be 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Start processes as torchrun does, and wait for them."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import determine_local_world_size, parse_args, run

    options = parse_args(list(arguments))  # type: ignore[no-untyped-call]
    processes = determine_local_world_size(options.nproc_per_node)
    if threads := threads_of_each(processes):
        os.environ["OMP_NUM_THREADS"] = str(threads)
        print(f"OMP_NUM_THREADS = {threads}: {cores()} cores, {processes} processes", file=sys.stderr)
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"error: rank {rank} was ended by {name}", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0


def threads_of_each(processes: int) -> int:
    """The threads that each of several processes of this machine gets where ``OMP_NUM_THREADS`` is not set:
    torchrun would give one. 0 where it is set, and for a single process, which has all cores by itself."""
    if processes < 2 or "OMP_NUM_THREADS" in os.environ:
        return 0
    return max(1, cores() // processes)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
