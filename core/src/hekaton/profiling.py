"""Kernel traces and memory snapshots of a few steps, written beside the run."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hekaton.checkpoint.disk.folders import reason_of, replacing
from hekaton.torch_versions import expect_cleared_events

if TYPE_CHECKING:
    from hekaton.config.sections import ProfilingSection

SNAPSHOT_ENTRIES = 100_000
SLOWEST = 10
"""Operators that are listed with each trace."""
ENDING = 100
"""Bytes in which the last bracket of a trace is."""

log = logging.getLogger("hekaton")


class Profiler:
    """Steps torch's profiler and, on CUDA, the allocator's recorder, once per training step.

    Every ``profile_freq`` steps, after ``profiler_warmup`` steps of warmup, a trace of ``profiler_active``
    steps is written to ``save_traces_folder/step-N/rank-R.json`` (open it in Perfetto), and the slowest
    operators to the log.
    """

    def __init__(self, settings: ProfilingSection, folder: Path, *, rank: int, step: int) -> None:
        self._settings = settings
        self._folder = folder
        self._rank = rank
        self._step = step
        self._profiler: Any = None
        self._of_next_step: Any = None
        self._records_next_step = False
        if settings.enable_profiling:
            active, warmup = settings.profiler_active, settings.profiler_warmup
            self._profiler = torch.profiler.profile(
                activities=_activities(),
                schedule=torch.profiler.schedule(
                    wait=settings.profile_freq - warmup - active, warmup=warmup, active=active
                ),
                on_trace_ready=self._write_trace,
                record_shapes=True,
            )
            expect_cleared_events()
            self._profiler.start()
        if settings.enable_memory_snapshot:
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)

    def trace_next_step(self) -> None:
        """Trace the step that begins now, where no trace is due anyway."""
        if self._profiler is not None or torch.autograd.profiler._is_profiler_enabled:
            log.info("no trace on request: profiling.enable_profiling is on, or one is under way")
            return
        expect_cleared_events()
        self._of_next_step = torch.profiler.profile(
            activities=_activities(), on_trace_ready=self._write_trace, record_shapes=True
        )
        self._of_next_step.start()

    def record_next_step(self) -> None:
        """Record what the step that begins now allocates, for a snapshot after it."""
        if self._settings.enable_memory_snapshot or self._records_next_step:
            log.info("no snapshot on request: profiling.enable_memory_snapshot is on, or one is under way")
        elif not torch.cuda.is_available():
            log.info("no snapshot on request: only the memory of CUDA devices is recorded")
        else:
            torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)
            self._records_next_step = True

    def step(self, step: int) -> None:
        """Note the end of a step."""
        self._step = step
        if self._of_next_step is not None:
            self._of_next_step.stop()
            self._of_next_step = None
        if self._profiler is not None:
            with warnings.catch_warnings():  # each cycle is written before its events are cleared
                warnings.filterwarnings("ignore", message=".*Profiler clears events at the end of each cycle")
                self._profiler.step()
        due = self._settings.enable_memory_snapshot and step % self._settings.profile_freq == 0
        if due or self._records_next_step:
            snapshot = pickle.dumps(torch.cuda.memory._snapshot())
            path = self._written(self._settings.save_memory_snapshot_folder, "pickle", snapshot)
            if path is not None:
                log.info("snapshot of the memory written to %s", path)
        self._stop_recording()

    def close(self) -> None:
        """Drop what is under way: a profiler that is left running crashes the process at its end."""
        if self._of_next_step is not None:
            self._of_next_step.on_trace_ready = None
            self._of_next_step.stop()
            self._of_next_step = None
            log.info("no trace on request: there was no next step")
        self._stop_recording()
        if self._profiler is not None:
            if self._profiler.current_action == torch.profiler.ProfilerAction.WARMUP:
                self._profiler.on_trace_ready = None
            self._profiler.stop()

    def _stop_recording(self) -> None:
        if self._records_next_step:
            torch.cuda.memory._record_memory_history(enabled=None)
            self._records_next_step = False

    def _write_trace(self, profiler: Any) -> None:
        began = time.perf_counter()
        path = self._written(self._settings.save_traces_folder, "json", profiler)
        written = "" if path is None else f"trace written to {path} in {time.perf_counter() - began:.1f} s\n"
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        slowest = profiler.key_averages().table(sort_by=by, row_limit=SLOWEST, max_name_column_width=40)
        log.info("%s%s", written, slowest.strip("\n"))

    def _written(self, folder: str, suffix: str, content: Any) -> Path | None:
        """Write bytes, or the trace of a profiler; the run goes on where that is impossible.

        :returns: the file, ``None`` when it could not be written.
        """
        path = self._folder / folder / f"step-{self._step}" / f"rank-{self._rank}.{suffix}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    content.export_chrome_trace(stream.name)
                    _check_whole(Path(stream.name))
        except OSError as error:
            log.warning("step %d: cannot write '%s': %s", self._step, path, reason_of(error))
            return None
        return path


def _check_whole(trace: Path) -> None:
    """torch says nothing of a disk that is full.

    :raises OSError: when the end of a trace is not there.
    """
    with trace.open("rb") as stream:
        stream.seek(-min(ENDING, trace.stat().st_size), os.SEEK_END)
        if not stream.read().rstrip().endswith(b"}"):
            raise OSError(errno.ENOSPC, "only a part of it could be written", str(trace))


def _activities() -> list[torch.profiler.ProfilerActivity]:
    found = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        found.append(torch.profiler.ProfilerActivity.CUDA)
    return found
