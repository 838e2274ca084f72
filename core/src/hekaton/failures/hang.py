"""A process that makes no progress says where it is: a collective that waits for it raises nothing."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hekaton.failures.board import Board, Failure, this_machine
from hekaton.failures.collectives import waiting
from hekaton.failures.shown import elsewhere, opened_alone, tell_torchrun
from hekaton.failures.whereabouts import Whereabouts

FRAMES = 6
"""Of a stack that is shown; the file has all."""
_PHASES = ("data", "forward_backward", "optimizer")
_SHOWN = 8

log = logging.getLogger("hekaton")


@dataclass(frozen=True, kw_only=True)
class Stuck:
    """A process that has entered no new phase for long.

    :param seconds: since it entered the one that it is in.
    :param stack: of its main thread, the innermost frame last.
    :param collectives: in which it waits, see :func:`~hekaton.failures.collectives.waiting`.
    """

    rank: int
    host: str
    step: int
    phase: str
    seconds: float
    stack: str
    collectives: Sequence[str] = ()


@contextmanager
def hangs_are_shown(
    where: Whereabouts,
    board: Board | None,
    *,
    rank: int,
    world_size: int,
    seconds: float,
    abort: bool,
    folder: Path,
    end: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """Watch that this process enters a phase in ``seconds``, after its first step; one that does not writes
    the stacks of its threads to ``hangs/step-N-rank-R.txt``, and one of all such processes says which ranks
    are in which phase.

    :param where: followed, not read: a phase that is entered again is progress.
    :param board: ``None`` for a single process.
    :param seconds: 0 watches nothing.
    :param abort: end the run then.
    """
    if not seconds:
        yield
        return
    watch = _Watch(where, board, rank=rank, world_size=world_size, seconds=seconds, folder=folder)
    where.follow.append(watch.moved)
    done = threading.Event()

    def run() -> None:
        while not done.wait(watch.interval):
            if watch.is_stuck():
                status = watch.tell(abort=abort)
                if abort and not done.is_set():
                    sys.stdout.flush()
                    sys.stderr.flush()
                    end(status)
                    return
            else:
                watch.take_back()

    thread = threading.Thread(target=run, name="hekaton hangs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        where.follow.remove(watch.moved)
        thread.join()


def in_words(found: Mapping[int, Stuck], *, world_size: int, hosts: Callable[[int], str]) -> str:
    """Which ranks are in which phase of which step, first those that the others wait for, with the stack of
    one of them.

    :param found: rank -> what it says of itself.
    :param hosts: the host of a rank that says nothing.
    """
    silent = [rank for rank in range(world_size) if rank not in found]
    groups: dict[tuple[int, str, tuple[str, ...]], list[Stuck]] = defaultdict(list)
    for one in found.values():
        groups[one.step, one.phase, tuple(one.collectives)].append(one)
    ordered = sorted(groups.items(), key=lambda group: (_order(*group[0][:2]), group[0][2]))
    lines = [f"{_ranks([(rank, hosts(rank)) for rank in silent])}: nothing heard of"] if silent else []
    for (step, phase, collectives), those in ordered:
        longest = max(one.seconds for one in those)
        waits = f", waiting in {', '.join(collectives)}" if collectives else ""
        ranks = _ranks([(one.rank, one.host) for one in those])
        lines.append(f"{ranks}: in step {step} ({phase}) for {longest:.0f} s{waits}")
    slowest = ordered[0][1][0]
    lines += [f"stack of rank {slowest.rank}:", slowest.stack]
    return "\n  ".join(["no progress:", *"\n".join(lines).splitlines()])


class _Watch:
    def __init__(
        self,
        where: Whereabouts,
        board: Board | None,
        *,
        rank: int,
        world_size: int,
        seconds: float,
        folder: Path,
    ) -> None:
        self.interval = min(seconds / 4, 5.0)
        self._where = where
        self._board = board
        self._rank = rank
        self._world_size = world_size
        self._seconds = seconds
        self._folder = folder
        self._first: int | None = None
        self._since = time.monotonic()
        self._told = 0.0
        self._stuck_in: int | None = None
        self._main = threading.main_thread().ident

    def moved(self, phase: str) -> None:
        self._since = time.monotonic()
        if self._first is None:
            self._first = self._where.step

    def is_stuck(self) -> bool:
        """Whether it is, and nobody was told since it last moved. The first step may compile for long."""
        if self._where.step is None or self._where.step == self._first or self._told == self._since:
            return False
        return time.monotonic() - self._since >= self._seconds

    def tell(self, *, abort: bool) -> int:
        """Write the stacks, and say for all ranks where they are; :returns: the exit status of the run."""
        self._told, self._stuck_in = self._since, self._where.step
        mine = Stuck(
            rank=self._rank,
            host=socket.gethostname(),
            step=self._stuck_in or 0,
            phase=self._where.phase,
            seconds=time.monotonic() - self._since,
            stack=self._stack(),
            collectives=waiting(),
        )
        self._write_stacks(mine)
        if self._board is None:
            text = in_words({self._rank: mine}, world_size=1, hosts=lambda rank: mine.host)
            self._say(text, abort=abort)
            return 1
        tells = self._board.is_stuck(mine.step, json.dumps(asdict(mine)))
        time.sleep(2 * self.interval + 1.0)  # in which the others see it, too
        if tells:
            said = {rank: Stuck(**json.loads(text)) for rank, text in self._board.stuck().items()}
            text = in_words(said, world_size=self._world_size, hosts=self._board.host_of)
            self._say(text, abort=abort)
            if abort:
                slow = min(said.values(), key=lambda one: _order(one.step, one.phase))
                self._board.publish(self._failure(slow, text))
                self._board.leave(10.0)
            return 1
        if self._board.is_gone:  # nobody can say anything for all
            self._say(in_words({self._rank: mine}, world_size=0, hosts=lambda rank: ""), abort=abort)
        cause = self._board.cause(within=10.0) if abort else None
        if cause is not None:
            error = elsewhere(self._board, cause)
            if str(error):
                print(f"error: {error}", file=sys.stderr, flush=True)
            self._board.looked()
        return 1

    def take_back(self) -> None:
        """Where this process moves again: what it told would be in the next report, or keep it away."""
        if self._stuck_in is None or self._told == self._since:
            return
        log.warning("rank %d makes progress again", self._rank)
        if self._board is not None:
            self._board.moves_again(self._stuck_in)
        self._stuck_in = None

    def _say(self, text: str, *, abort: bool) -> None:
        text += f"\n  all stacks: {self._folder / 'hangs'}"
        log.warning("%s", text)
        if abort:
            tell_torchrun(text)

    def _failure(self, slow: Stuck, text: str) -> Failure:
        return Failure(
            rank=slow.rank,
            host=slow.host,
            machine=this_machine(),
            where=f"in step {slow.step} ({slow.phase})",
            line=text.splitlines()[1].strip(),
            text=text,
            exit_code=1,
            teller=self._rank,
        )

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._main or 0)
        if frame is None:
            return ""
        innermost = traceback.extract_stack(frame)[-FRAMES:]
        return "\n".join(f"  {one.filename}:{one.lineno} {one.name}" for one in innermost)

    def _write_stacks(self, mine: Stuck) -> None:
        path = self._folder / "hangs" / f"step-{mine.step}-rank-{mine.rank}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8", opener=opened_alone) as file:
                file.write(f"in step {mine.step} ({mine.phase}) for {mine.seconds:.0f} s\n")
                file.writelines(f"waiting in {one}\n" for one in mine.collectives)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            log.warning("the stacks of a process that makes no progress cannot be written: %s", error)


def _order(step: int, phase: str) -> tuple[int, int]:
    """What comes first holds the others up."""
    return step, _PHASES.index(phase) if phase in _PHASES else len(_PHASES)


def _ranks(those: list[tuple[int, str]]) -> str:
    shown = ", ".join(f"{rank} on {host}" for rank, host in those[:_SHOWN])
    more = f" and {len(those) - _SHOWN} more" if len(those) > _SHOWN else ""
    return f"rank{'s' if len(those) > 1 else ''} {shown}{more}"
