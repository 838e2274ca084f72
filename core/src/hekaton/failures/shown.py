"""An error of one of several processes is shown once, and is what every machine ends with.

A process that fails publishes what happened. One whose collective breaks looks there first: it ends with the
cause in place of a traceback of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from hekaton.errors import HekatonError, RaisedElsewhere
from hekaton.failures.board import Board, Failure, this_machine
from hekaton.failures.whereabouts import Whereabouts
from hekaton.stop_signals import ending_is_known

LOOKS = 5.0
"""Seconds in which a process whose collective broke waits for another one to say why."""
SAY_WHERE = 2.5
"""Seconds in which a process that others gave up waiting for says where it is: it looks every two."""
STORE_STAYS = 10.0
"""Seconds, at most, that the process which holds the store outlives its own error, for the others to look."""
_BROKEN = re.compile(r"gloo/transport|NCCL|ProcessGroup|TCPStore|c10d")


@contextlib.contextmanager
def first_cause_is_shown(board: Board, where: Whereabouts, *, folder: str | Path) -> Iterator[None]:
    """Publish what ends this process, or end with what ended another one before.

    :param folder: where tracebacks are written, a file per rank that had an error of its own.
    :raises RaisedElsewhere: in place of an error of this rank, when another one failed before.
    """
    try:
        yield
    except Exception as error:
        ending_is_known()
        try:
            _end(board, error, where, Path(folder))
        finally:
            board.leave(STORE_STAYS)
        raise


def _end(board: Board, error: Exception, where: Whereabouts, folder: Path) -> None:
    """:raises RaisedElsewhere: when the error is not the first."""
    own = own_error(error)
    if own is None:
        board.breaks()
        cause = board.cause(within=LOOKS)
        if cause is not None:
            raise elsewhere(board, cause) from error
        file = _kept(board.rank, error, where, folder)
        lost = described(error, where, rank=board.rank, file=file)
        raise elsewhere(board, board.lose(lost, within=SAY_WHERE), said_there=False) from error
    mine = described(own, where, rank=board.rank)
    before = board.cause()
    if not isinstance(own, HekatonError) and (before is None or before.line != mine.line):
        mine = described(own, where, rank=board.rank, file=_kept(board.rank, error, where, folder))
    first = board.publish(mine)
    if isinstance(own, HekatonError) and own.everywhere:
        tell_torchrun(own.message)
        return
    if first.teller == board.rank:
        tell_torchrun(str(mine))
        if not isinstance(own, HekatonError):
            _say_after_traceback(str(mine))
        return
    if first.line == mine.line:
        raise elsewhere(board, first) from error
    raise elsewhere(board, first, own=mine) from error


def elsewhere(
    board: Board, cause: Failure, *, own: Failure | None = None, said_there: bool = True
) -> RaisedElsewhere:
    """The error that this process ends with: the cause, or nothing where its machine has said it already.

    :param own: another failure, which this rank had later.
    :param said_there: whether the rank that failed has said it on its own machine.
    """
    tell_torchrun(str(cause))
    lines = []
    if own is not None:
        file = f" (traceback: {own.file})" if own.file else ""
        lines.append(f"rank {own.rank} on {own.host} failed, too, {own.where}: {own.line[:200]}{file}")
    shown = (not said_there or this_machine() != cause.machine) and _shares_no_console()
    if own is not None or (shown and board.is_first_here(cause)):
        time.sleep(0.2)  # for others that fail in the same moment to be counted
        others = board.others()
        more = f"\n  {others} other rank{'s' if others > 1 else ''} failed, too" if others else ""
        lines.append(f"{'before that ' if own else ''}{cause}{'' if own else more}")
    raised = RaisedElsewhere("; ".join(lines))
    raised.exit_code = cause.exit_code
    return raised


def own_error(error: BaseException) -> BaseException | None:
    """What went wrong on this rank itself; ``None`` where all that it has is that a collective broke.

    An error that is raised while a broken collective is handled follows from it; a collective that breaks
    while an error is handled does not hide that error.
    """
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    if _is_broken(chain[-1]):
        return None
    return next(one for one in chain if not _is_broken(one))


def _is_broken(error: BaseException) -> bool:
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _BROKEN.search(str(error)) is not None


def described(error: BaseException, where: Whereabouts, *, rank: int, file: str = "") -> Failure:
    """What this process says of an error.

    :param file: where its traceback is.
    """
    if isinstance(error, HekatonError):
        line, text, exit_code = error.message, str(error), error.exit_code
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        line = text = f"{type(error).__name__}: {first}"
        exit_code = 1
    raised_by = error.raised_by if isinstance(error, HekatonError) else None
    own_rank, host = raised_by or (rank, socket.gethostname())
    return Failure(
        rank=own_rank,
        host=host,
        teller=rank,
        machine=this_machine(),
        where=str(where),
        line=line,
        text=text,
        exit_code=exit_code,
        file=file,
    )


def _kept(rank: int, error: BaseException, where: Whereabouts, folder: Path) -> str:
    """Write the traceback to this rank's file; :returns: its path, empty where it cannot be written."""
    path = folder / "errors" / f"rank_{rank}.txt"
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=opened_alone) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ""
            file.write(f"{when}  rank {rank} on {socket.gethostname()}, {where}\n")
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return ""  # the console of this rank has it
    return str(path)


def opened_alone(path: str, flags: int) -> int:
    """Open neither through a link, nor what waits for a reader."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _shares_no_console() -> bool:
    """Whether this machine's output goes where no other machine's does; ``srun`` brings all to the first."""
    return "SLURM_STEP_ID" not in os.environ or this_machine().endswith("/0")


def _say_after_traceback(text: str) -> None:
    """End this process's output with the cause in words: on a console that several share, as under ``srun``,
    the others may be ended before they say it."""
    show = sys.excepthook

    def show_and_say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        print(f"error: {text}", file=sys.stderr, flush=True)

    sys.excepthook = show_and_say


def tell_torchrun(text: str) -> None:
    """Leave the cause for torchrun, whose report is the last thing on a machine's console."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path or os.path.exists(path):
        return
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        said = {
            "message": text,
            "extraInfo": {"py_callstack": f"error: {text}", "timestamp": str(int(time.time()))},
        }
        json.dump({"message": said}, file)
