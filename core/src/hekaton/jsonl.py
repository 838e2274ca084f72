"""The logger ``jsonl``: ``metrics.jsonl`` in the run folder, an object per line."""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


class JsonLinesLogger:
    """Appends ``{"step": ..., "time": ..., metric: value, ...}`` for each call of :meth:`log`.

    ``time`` is in seconds since the epoch. A value that is not finite is ``null``: JSON has no name for it.
    Validation has a line of its own, with the step after which it ran.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, step: int) -> None:
        """Remove the lines after ``step``, and one that was cut off while it was written."""
        if not self._path.exists():
            return
        kept = self._path.with_name(f"{NAME}.{secrets.token_hex(4)}.tmp")
        with self._path.open("rb") as lines, kept.open("wb") as stream:
            stream.writelines(line for line in lines if _is_until(line, step))
        kept.rename(self._path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **values}, allow_nan=False) + "\n"
        # One write per line, not into what a link points to: readers see whole lines.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing is left to write."""


def _is_until(line: bytes, step: int) -> bool:
    try:
        read = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(read, dict) and read.get("step", math.inf) <= step


def build(section: Any, folder: Path) -> JsonLinesLogger:
    return JsonLinesLogger(folder)
