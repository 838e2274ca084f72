"""The logger: writes the metrics of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from hekaton.scaffold.templates.settings import LoggerSection


class CsvLogger:
    """A line per step and metric."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.stream = path.open("a", encoding="utf-8", newline="")
        self.writer = csv.writer(self.stream)

    def resume(self, step: int) -> None:
        """Remove what an earlier start logged after ``step``, the last one that counts."""
        with self.path.open(encoding="utf-8", newline="") as stream:
            kept = [row for row in csv.reader(stream) if int(row[0]) <= step]
        self.stream.truncate(0)
        self.writer.writerows(kept)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """:param metrics: numbers by name, of which a step may have others than the one before."""
        self.writer.writerows((step, name, value) for name, value in metrics.items())
        self.stream.flush()

    def close(self) -> None:
        self.stream.close()


def build(section: LoggerSection, folder: Path) -> CsvLogger:
    """:param folder: of this run's logs, which may not be there yet."""
    return CsvLogger(folder / section.file)
