"""The logger ``jsonl``: ``metrics.jsonl`` in the run folder, an object per line."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hekaton.checkpoint.disk.folders import replacing
from hekaton.json_lines import append_line, is_number, read_lines

log = logging.getLogger("hekaton")

NAME = "metrics.jsonl"


def path_in(run_folder: Path) -> Path:
    """The file of a run; with ``metrics.save_for_all_ranks``, that of rank 0."""
    path, of_rank_0 = run_folder / NAME, run_folder / "rank_0" / NAME
    return of_rank_0 if os.path.lexists(of_rank_0) and not os.path.lexists(path) else path


class JsonLinesLogger:
    """Appends ``{"step": ..., "time": ..., metric: value, ...}`` for each call of :meth:`log`.

    ``time`` is in seconds since the epoch. A value that is not finite is ``null``: JSON has no name for it.
    Validation has a line of its own, with the step after which it ran.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, step: int) -> None:
        """Remove the lines after ``step``, and one that was cut off while it was written. Where there are
        steps from which the run does not resume, the lines of these are kept in a file beside it."""
        if not self._path.exists():
            return
        if step == 0 and self._has_steps():
            kept = next(
                path
                for number in itertools.count(1)
                if not os.path.lexists(path := self._path.with_name(f"metrics.{number}.jsonl"))
            )
            self._path.rename(kept)
            log.info("notice: this run begins anew where there are steps; the metrics so far are in %s", kept)
            return
        lines = read_lines(self._path)
        with contextlib.closing(lines), replacing(self._path) as stream:
            stream.writelines(line for line, read in lines if read is not None and _is_until(read, step))

    def _has_steps(self) -> bool:
        """Whether there are steps of a run, in whatever folder of it its checkpoints are."""
        folder = self._path.parent
        of_run = folder.parent if folder.name.startswith("rank_") else folder
        return any(of_run.glob("*/step-[1-9]*"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_line(self._path, {"step": step, "time": round(time.time(), 3), **values})

    def close(self) -> None:
        """Nothing is left to write."""


def _is_until(line: Mapping[str, Any], step: int) -> bool:
    return is_number(line.get("step")) and line["step"] <= step


def build(section: Any, folder: Path) -> JsonLinesLogger:
    return JsonLinesLogger(folder)
