"""What is recorded of a file while it is read: a place for each document, and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from hekaton.errors import DataError
from hekaton_hf.files import shown
from hekaton_hf.readers import Places

RECORD = np.dtype([("file", "<i4"), ("start", "<i8"), ("length", "<i8")])
"""Number of the file in its group, or ``TEXTS``; place and number of bytes."""
TEXTS = -1
_EXAMPLES = 3
_BUFFERED = 1 << 16


@dataclass
class Odd:
    """How many rows are odd in some way, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)


@dataclass
class FileReport:
    """What was found in a file.

    :ivar content: hash of all its bytes.
    :ivar rows: rows that have or should have a document.
    :ivar documents: of them, those that have one; it may be empty.
    :ivar keys: names of what the first rows have, in JSON and parquet files.
    :ivar has_column: whether any row had the column, or the format has none.
    :ivar is_description: whether it describes other files: one JSON object without text, found beside them.
        Its row is no document.
    """

    content: str = ""
    size: int = 0
    rows: int = 0
    documents: int = 0
    empty: int = 0
    keys: list[str] = field(default_factory=list)
    has_column: bool = True
    is_description: bool = False
    replaced: Odd = field(default_factory=Odd)
    bad: Odd = field(default_factory=Odd)


class Recorder:
    """Writes the records and texts of a group; see :class:`hekaton_hf.readers.Rows`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = (folder / "documents").open("wb")
        self._texts = (folder / "texts").open("wb")
        self._buffered: list[tuple[int, int, int]] = []
        self._file = 0
        self._is_direct = True
        self._end = self._first_record = 0
        self._report = FileReport()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._flush()
                for stream in (self._records, self._texts):
                    stream.flush()
                    os.fsync(stream.fileno())
        finally:
            self._records.close()
            self._texts.close()

    def sizes(self) -> dict[str, int]:
        return {name: (self._folder / name).stat().st_size for name in ("documents", "texts")}

    def begin(self, number: int, report: FileReport) -> None:
        """What comes next is of this file."""
        self._flush()
        self._first_record = self._records.tell()
        self._file, self._report = number, report
        self._is_direct = True

    def recoded(self) -> None:
        self._is_direct = False

    def text(self, text: str, start: int, length: int) -> None:
        self._report.rows += 1
        self._report.documents += 1
        self._report.empty += not text
        if self._is_direct:
            self._buffered.append((self._file, start, length))
        else:
            self._append(text.encode())
        if len(self._buffered) >= _BUFFERED:
            self._flush()

    def spans(self, content: bytes, start: int, places: Places, lengths: Places) -> None:
        self._report.rows += len(places)
        self._report.documents += len(places)
        self._flush()
        records = np.empty(len(places), RECORD)
        records["length"] = lengths
        if self._is_direct:
            records["file"], records["start"] = self._file, start + places
        else:
            records["file"], records["start"] = TEXTS, self._end + places
            self._write_texts(content)
        self._write(self._records, records.tobytes())

    def part(self, content: bytes) -> None:
        if not self._is_direct:
            self._write_texts(content)

    def end(self, start: int, length: int) -> None:
        self._report.rows += 1
        self._report.documents += 1
        self._buffered.append(
            (self._file, start, length) if self._is_direct else (TEXTS, self._end - length, length)
        )

    def replaced(self, where: str) -> None:
        self._report.replaced.add(where)

    def bad(self, where: str, reason: str) -> None:
        self._report.rows += 1
        self._report.bad.add(f"{where}: {reason}")

    def keys(self, names: Iterable[str], has_text: bool) -> None:
        self._report.has_column |= has_text
        if self._report.rows < _EXAMPLES:
            self._report.keys = list(dict.fromkeys([*self._report.keys, *names]))[:50]

    def _append(self, raw: bytes) -> None:
        self._buffered.append((TEXTS, self._end, len(raw)))
        self._write_texts(raw)

    def drop_description(self) -> None:
        """Take the file's rows back if it is a single object without text."""
        report = self._report
        if report.rows == 1 and report.keys and (report.bad.count or not report.has_column):
            report.is_description = True
            report.rows = report.documents = report.empty = 0
            report.bad = Odd()
            self._flush()
            self._records.seek(self._first_record)
            self._records.truncate()

    def _write_texts(self, raw: bytes) -> None:
        self._write(self._texts, raw)
        self._end += len(raw)

    def _flush(self) -> None:
        self._write(self._records, np.array(self._buffered, RECORD).tobytes())
        self._buffered.clear()

    def _write(self, stream: IO[bytes], raw: bytes) -> None:
        try:
            stream.write(raw)
        except OSError as e:  # while a file is read, of which it is no error
            raise unwritable(self._folder.parent, e) from e


def unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the index of the data in '{shown(folder)}': {error.strerror}",
        hint="set the environment variable HEKATON_CACHE to a folder with room that can be written to",
    )
