"""torchrun without its report, where a process has said what is wrong: ``python -m hekaton.launch``.

Options are those of torchrun. The exit status is that of the process that failed first, where torchrun's
would be 1.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Start processes as torchrun does, and wait for them."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    try:
        run(parse_args(list(arguments)))  # type: ignore[no-untyped-call]
    except ChildFailedError as e:
        rank, failure = e.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"error: rank {rank} was ended by {name}", file=sys.stderr)
            return 128 - failure.exitcode
        return failure.exitcode
    return 0
