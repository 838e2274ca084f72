"""Where the wall time of a run goes: every second, over restarts, under one name."""

from __future__ import annotations

import logging
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.checkpoint.disk.folders import reason_of
from hekaton.errors import DataError
from hekaton.json_lines import append_line, is_number, read_lines

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.failures.whereabouts import Whereabouts

log = logging.getLogger("hekaton")

NAME = "accounting.jsonl"
"""In the run folder: a line for each stretch of the run's time, written where numbers are shown or saved,
after validations and evaluations, and every minute."""

LINE_EVERY = 60.0
"""Seconds after which a line is written between two that have a reason."""

NAMES = {
    "start": "start-up",
    "load": "load",
    "data": "data wait",
    "forward_backward": "compute",
    "waiting for the device": "compute",
    "optimizer": "optimizer",
    "save": "save",
    "validation": "validation",
    "comparing ranks": "between steps",
    "evaluation": "evaluation",
    "images": "images",
    "after the optimizer": "between steps",
    "after the step": "between steps",
    "end": "end",
}
"""Phase of a run -> the name that its seconds are under."""
COMPILE = "compile"
"""The forward and backward passes of the first step of each start, whether anything is compiled or not: they
warm up all that comes after them."""
LOST = "lost work"
DOWN = "down"
OF_STEPS = ("data wait", COMPILE, "compute", "optimizer", "between steps")
USEFUL = ("compute", "optimizer")
UNDONE = ("data", "forward_backward", "optimizer")
"""Phases of a step in which it is not done yet."""


def process_start() -> float:
    """When this process was started, in seconds since the epoch; on other systems than Linux, now."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return time.time()


def accounts_of(config: JobConfig, *, rank: int, where: Whereabouts) -> Accounts:
    """The accounts of a run, which follow where it is."""
    writes = rank == 0 and not config.checkpoint.load_only
    accounts = Accounts(Path(config.job.dump_folder), writes=writes, since=where.since)
    where.follow.append(accounts.enter)
    return accounts


class Accounts:
    """Adds up the seconds of each phase of this process, and appends them to a file on rank 0.

    On CUDA these are the host's seconds: it runs ahead of the device, and is in ``compute`` when it waits.
    """

    def __init__(self, folder: Path, *, writes: bool, since: float | None = None) -> None:
        """:param writes: whether this process is the one that writes; :param since: when the process began to
        work on this run, in seconds since the epoch."""
        self._path = folder / NAME if writes else None
        now = time.time()
        self._began = now
        if since is not None:
            self._began = max(since, _last_end(folder) if writes else 0.0)
        self._phase = "start"
        self._entered = time.perf_counter() - (now - self._began)
        self._seconds: dict[str, float] = defaultdict(float)
        self._step = 0
        self._warm = False

    def enter(self, phase: str) -> None:
        """What comes from here on belongs to ``phase``."""
        now = time.perf_counter()
        name = NAMES.get(self._phase, self._phase)
        if self._phase == "forward_backward" and not self._warm:
            name, self._warm = COMPILE, phase != "forward_backward"
        self._seconds[name] += now - self._entered
        self._phase, self._entered = phase, now

    def keep_up(self, step: int) -> None:
        """Write where more than steps was done since the last line, or a minute ago: what comes after the
        last line of a process that is killed has no name."""
        self.enter(self._phase)
        if not self._seconds.keys() <= {*OF_STEPS} or sum(self._seconds.values()) > LINE_EVERY:
            self.write(step)

    def end(self, step: int, error: BaseException | None) -> int:
        """Write what was added up until the end of a run.

        :returns: the last step that is done: ``step``, unless an error has ended it before it was. Its share
            of the time since the last line is lost then.
        """
        if error is not None and self._phase in UNDONE:
            self.enter(self._phase)
            share = 1 / max(1, step - self._step)
            for name in self._seconds.keys() & {*OF_STEPS}:
                self._seconds[LOST] += share * self._seconds[name]
                self._seconds[name] *= 1 - share
            step -= 1
        self.write(step)
        return step

    def write(self, step: int, *, resumed: bool = False) -> None:
        """Append what was added up since the last time.

        :param step: the last step that is done; :param resumed: the run goes on after it, and steps after it
            that were done before are lost.
        """
        self.enter(self._phase)
        seconds = {name: round(spent, 6) for name, spent in self._seconds.items()}
        ended = self._began + sum(self._seconds.values())
        line = {"began": self._began, "ended": ended, "from": step if resumed else self._step, "step": step}
        self._seconds.clear()
        self._began, self._step = ended, step
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, {**line, "resumed": resumed, "seconds": seconds})
        except OSError as error:
            log.warning("the run's time is no longer written to %s: %s", self._path, error.strerror)
            self._path = None


@dataclass(frozen=True)
class Account:
    """The time of a run.

    :param seconds: name -> seconds; they add up to ``total``.
    :param starts: how often the run was started.
    :param step: the last step that is done.
    """

    seconds: dict[str, float]
    total: float
    starts: int
    step: int

    @property
    def goodput(self) -> float:
        """The share of wall time in which steps were computed that count."""
        return sum(self.seconds.get(name, 0.0) for name in USEFUL) / self.total if self.total else 0.0


def read_account(folder: Path) -> Account:
    """Add up ``accounting.jsonl`` of a run folder.

    :raises DataError: when there is none, nothing in it, or it cannot be read.
    """
    return add_up(read_lines_of(folder))


def add_up(lines: Sequence[dict[str, Any]]) -> Account:
    """:param lines: of ``accounting.jsonl``, in their order."""
    seconds: dict[str, float] = defaultdict(float)
    for index, (line, lost) in enumerate(zip(lines, _lost_shares(lines), strict=True)):
        for name, spent in line["seconds"].items():
            share = lost if name in OF_STEPS else 0.0
            seconds[name] += spent * (1 - share)
            seconds[LOST] += spent * share
        if index:
            seconds[DOWN] += max(0.0, line["began"] - lines[index - 1]["ended"])
    starts = sum(line["resumed"] and "start-up" in line["seconds"] for line in lines)
    total = max(line["ended"] for line in lines) - min(line["began"] for line in lines)
    return Account(dict(seconds), total, starts, lines[-1]["step"])


def goodput_by_step(lines: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
    """Steps, and the share of the time until then in which steps were computed that count in the end.

    :param lines: of ``accounting.jsonl``, in their order.
    """
    useful, found = 0.0, []
    for line, lost in zip(lines, _lost_shares(lines), strict=True):
        useful += (1 - lost) * sum(line["seconds"].get(name, 0.0) for name in USEFUL)
        elapsed = line["ended"] - lines[0]["began"]
        found.append((line["step"], useful / elapsed if elapsed > 0 else 0.0))
    return found


def resumed_at(lines: Sequence[dict[str, Any]]) -> list[int]:
    """The steps after which the run went on once more: after a start, or a rollback."""
    return [line["step"] for line in lines[1:] if line["resumed"]]


def _lost_shares(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Of the steps of each line, the share that a later start or rollback did again."""
    shares = []
    back_to = float("inf")
    for line in reversed(lines):
        done = line["step"] - line["from"]
        lost = line["step"] - min(back_to, line["step"])
        shares.append(min(1.0, lost / done) if done > 0 else float(lost > 0))
        if line["resumed"]:
            back_to = min(back_to, line["step"])
    return shares[::-1]


def read_lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of ``accounting.jsonl`` of a run folder.

    :raises DataError: when there is none, nothing in it, or it cannot be read.
    """
    lines = accounted(folder)
    if not lines:
        raise DataError(
            f"{folder / NAME} has nothing of a run", hint="give the folder job.dump_folder of a run"
        )
    return lines


def has_done_steps(folder: Path) -> bool:
    """Whether an earlier start of the run in a folder has done a step, saved or not."""
    try:
        return any(line["step"] > 0 for line in accounted(folder))
    except DataError:
        return False


def accounted(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder that the run wrote whole, if any; the last one of a process that was killed
    may be cut off.

    :raises DataError: when it is no regular file, or cannot be read.
    """
    path = folder / NAME
    try:
        return [line for _, line in read_lines(path) if line is not None and _is_account(line)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot read '{path}': {reason_of(error)}") from error


def _is_account(line: dict[str, Any]) -> bool:
    seconds = line.get("seconds")
    return (
        all(is_number(line.get(name)) for name in ("began", "ended", "from", "step"))
        and line["began"] <= line["ended"]
        and isinstance(line.get("resumed"), bool)
        and isinstance(seconds, dict)
        and all(name.isprintable() and is_number(spent) and spent >= 0 for name, spent in seconds.items())
    )


def _last_end(folder: Path) -> float:
    """When the run was last accounted for; a file that cannot be read says nothing of that."""
    try:
        return max((float(line["ended"]) for line in accounted(folder)), default=0.0)
    except DataError:
        return 0.0
