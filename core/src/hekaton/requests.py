"""What is asked of a run from outside of its processes: by files in its folder, and by the end of its job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hekaton.checkpoint.disk.folders import reason_of
from hekaton.control import RunControl
from hekaton.stop_signals import known_end

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.distributed import Process
    from hekaton.profiling import Profiler

EVERY = 1.0
"""Seconds from one look at the folder to the next: it may be on a network."""
SAVE, STOP, PROFILE, MEMORY = "save.request", "stop.request", "profile.request", "memory.request"

log = logging.getLogger("hekaton")


def requests_of(config: JobConfig, process: Process, control: RunControl, profiler: Profiler) -> Requests:
    """The requests of a run: rank 0 looks for files, in a folder that the run writes to."""
    looks = process.rank == 0 and not config.checkpoint.load_only
    folder = Path(config.job.dump_folder) if looks else None
    before = config.fault.save_before_seconds
    return Requests(
        control, folder, before=before, profile=profiler.trace_next_step, memory=profiler.record_next_step
    )


class Requests:
    """Looks after each step whether something is asked.

    ``save.request`` in the run folder asks for a checkpoint after the step in hand, ``stop.request`` for a
    checkpoint and the end of the run, ``profile.request`` for a trace of the next step, ``memory.request``
    for a snapshot of the device's memory after it. Each is removed when it is carried out.
    """

    def __init__(
        self,
        control: RunControl,
        folder: Path | None,
        *,
        before: float,
        profile: Callable[[], None],
        memory: Callable[[], None],
    ) -> None:
        """:param folder: of the run, on the rank that looks; ``None`` on others.
        :param before: seconds ahead of the end of the job at which the run saves and stops; 0 waits for it.
        :param profile: traces the next step; :param memory: takes a snapshot after it.
        """
        self._control = control
        self._folder = folder
        self._before = before
        self._profile = profile
        self._memory = memory
        self._looked = time.monotonic()
        self._stuck: set[str] = set()  # files that cannot be removed
        for name in (SAVE, STOP, PROFILE, MEMORY):
            if self._taken(name):
                log.info("%s is from before this start: removed", name)

    def look(self) -> None:
        """Called after each step."""
        end = known_end()
        if self._before and end is not None and time.time() > end - self._before:
            reason = f"SLURM ends the job in less than fault.save_before_seconds = {self._before:g}"
            self._control.ask(save=True, stop=True, again=True, reason=reason)
        if time.monotonic() - self._looked < EVERY:
            return
        self._looked = time.monotonic()
        if self._taken(SAVE):
            self._control.ask(save=True, reason=SAVE)
        if self._taken(STOP):
            self._control.ask(save=True, stop=True, reason=STOP)
        if self._taken(PROFILE):
            self._profile()
        if self._taken(MEMORY):
            self._memory()

    def _taken(self, name: str) -> bool:
        """Whether there is such a file, which is removed."""
        if self._folder is None:
            return False
        try:
            (self._folder / name).unlink()
        except FileNotFoundError:
            self._stuck.discard(name)
            return False
        except OSError as error:  # asked once more at the next look otherwise
            if name not in self._stuck:
                log.warning("%s cannot be removed, and is not carried out: %s", name, reason_of(error))
            self._stuck.add(name)
            return False
        self._stuck.discard(name)
        return True
