"""One run per checkpoint folder: a file in it names the run that writes there, which renews it.

A run that was killed leaves its lock behind: the next one finds that out and takes it over. On the same
machine the process is looked up; on another one the next renewal is waited for. No time of another host is
compared with a clock here: the two may differ by hours.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from hekaton.checkpoint.disk.folders import Folder, read_file, reason_of, write_whole
from hekaton.errors import CheckpointError

log = logging.getLogger("hekaton")

LOCK = "lock.json"
BEAT = 15.0
"""Seconds between two renewals."""
SILENCE = 60.0
"""Seconds without a renewal after which a run on another machine is taken to have ended."""
_MAX_SIZE = 1 << 16
_MAX_TEXT = 1000
SETTLE = 0.2
"""Seconds after which, of two runs that took the lock at once, the first sees that it has lost."""


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock."""

    host: str
    pid: int
    since: str
    """UTC, ISO 8601, like ``beat``."""
    machine: str
    """Where ``pid`` means this process: boot and process namespace."""
    started: str
    """When the process started, in ticks since the boot: numbers of processes are used again."""
    token: str
    beat: str
    """The last renewal. The time in it is for people; another run looks only at whether it changes."""

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """:raises ValueError: when it is not what a run writes."""
        try:
            content = json.loads(data)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        names = {field.name for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            raise ValueError("it does not hold what a lock holds")
        for name, value in content.items():
            if name == "pid":
                if type(value) is not int or not 0 < value < 2**31:
                    raise ValueError("its pid is not the number of a process")
            elif not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
                raise ValueError(f"its {name} is not a line of text")
        return cls(**content)

    @classmethod
    def me(cls) -> Holder:
        pid, now = os.getpid(), _now()
        return cls(platform.node(), pid, now, _machine(), _started(pid) or "", uuid.uuid4().hex, now)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_this_process(self) -> bool:
        return self.pid == os.getpid() and self._is_of_this_machine and self._runs

    @property
    def _is_of_this_machine(self) -> bool:
        return self.machine == _machine()

    @property
    def _runs(self) -> bool:
        return _started(self.pid) == self.started


class FolderLock:
    """The lock of a checkpoint folder. Best effort: it is a file that runs agree to heed.

    Of two runs that take it in the same instant both may go on, until :meth:`check` tells the first that it
    has lost, before it writes a step.
    """

    def __init__(self, root: Folder) -> None:
        self._root = root
        self._file = root / LOCK
        self._mine: Holder | None = None
        self._stop = threading.Event()
        self._beats: threading.Thread | None = None

    def take(self) -> None:
        """Take the lock, also from a run that has ended.

        :raises CheckpointError: when another run holds it.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        found = self._found()
        if isinstance(found, str):
            log.warning("%s: taking over %s, which no run wrote: %s", self._root, LOCK, found)
        mine = Holder.me()
        while (held := self._read()) != mine:
            if held is not None and not held.is_this_process:
                if self._lives(held):
                    raise self._in_use(held, "job.dump_folder or checkpoint.folder")
                log.warning(
                    "%s: the run that wrote here (%s) has ended: taking over its lock", self._root, held
                )
            self._write(mine)
            time.sleep(SETTLE)
        self._mine = mine
        self._stop.clear()
        self._beats = threading.Thread(target=self._show_life, args=(mine, self._stop), daemon=True)
        self._beats.start()
        atexit.register(self.release)

    def check_free(self) -> None:
        """For a run that saves nothing, and writes beside the folder.

        :raises CheckpointError: when another run holds the lock.
        """
        held = self._read()
        if held is not None and not held.is_this_process and self._lives(held):
            raise self._in_use(held, "job.dump_folder")

    def check(self) -> None:
        """:raises CheckpointError: when another run has taken the lock over from this one."""
        if self._mine is None:
            return
        held = self._read()
        if held is not None and held.token != self._mine.token:
            raise CheckpointError(f"the checkpoint folder {self._root} was taken over by another run: {held}")

    def release(self) -> None:
        """Give the lock up, if it is held."""
        atexit.unregister(self.release)
        self._stop.set()
        mine, self._mine = self._mine, None
        if mine is None or mine.pid != os.getpid():
            return
        if self._beats is not None:
            self._beats.join(timeout=SETTLE)  # a beat that a disk holds up ends later
        try:
            held = self._read()
            if held is not None and held.token == mine.token:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", self._file, reason_of(error))

    def _in_use(self, held: Holder, other: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint folder {self._root} is in use by another run: {held}",
            hint=f"stop that run, or choose another {other}",
        )

    def _lives(self, held: Holder) -> bool:
        if held._is_of_this_machine:
            return held._runs
        log.warning("%s: waiting up to %.0f s for the lock to be renewed by %s", self._root, SILENCE, held)
        end = time.monotonic() + SILENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, SILENCE / 10))
            now = self._read()
            if now is None or (now.token, now.beat) != (held.token, held.beat):
                return now is not None
        return False

    def _show_life(self, mine: Holder, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            try:
                found = self._found()
                if found is None or (isinstance(found, Holder) and found.token != mine.token):
                    return
                self._write(replace(mine, beat=_now()))
            except OSError as error:
                log.warning("cannot renew %s: %s", self._file, reason_of(error))

    def _read(self) -> Holder | None:
        """``None`` also for a file that no run wrote."""
        found = self._found()
        return found if isinstance(found, Holder) else None

    def _found(self) -> Holder | str | None:
        """Who holds the lock, or why no run can have written it; ``None`` when there is none."""
        try:
            return Holder.from_json(read_file(self._file, limit=_MAX_SIZE))
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EFBIG, errno.ELOOP):  # no regular file, or no small one
                return reason_of(error)
            raise

    def _write(self, holder: Holder) -> None:
        write_whole(self._file, (json.dumps(asdict(holder), indent=1) + "\n").encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return platform.node()


def _started(pid: int) -> str | None:
    """When a process started; ``None`` when there is no such process, or only what is left of it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        return _answers(pid)
    state, *numbers = text.rpartition(")")[2].split()
    return None if state in "ZX" else numbers[18]


def _answers(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
