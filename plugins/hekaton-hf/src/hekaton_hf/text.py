"""Dataset ``text``: the documents of local files, read where they lie."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from hekaton.errors import DataError
from hekaton_hf.checks import files_of_text
from hekaton_hf.decoding import decode, parse_object, text_in
from hekaton_hf.files import FoundFiles, format_of, shown
from hekaton_hf.index import Index, Settings, index_files
from hekaton_hf.open_files import OpenFiles
from hekaton_hf.recorder import RECORD, TEXTS
from hekaton_hf.reports import check_and_say, identity
from hekaton_hf.sections import TextDatasetSection

_DAY = 86400.0


class Texts:
    """The documents of indexed files. A null is an empty document."""

    def __init__(self, indices: Sequence[Index], *, column: str, fingerprint: str) -> None:
        self._indices = indices
        self._groups = [
            (
                str(index.records),
                str(index.texts),
                [str(file.path) for file in index.files],
            )
            for index in indices
        ]
        self._plain = {
            str(file.path) for index in indices for file in index.files if format_of(file.path) == "txt"
        }
        """Files of which documents are text as it lies there."""
        self._column = column
        self._ends = np.cumsum([len(index) for index in indices], dtype=np.int64)
        self._starts = [0, *self._ends[:-1].tolist()]
        self._files = OpenFiles()
        self._next_use = time.monotonic() + _DAY
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return int(self._ends[-1])

    def fetch(self, indices: Sequence[int]) -> list[str]:
        """:raises DataError: when a file changed since the run started, or cannot be read any more."""
        return [self._text(group, number) for group, number in self._places(indices)]

    def _places(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """The group of each document, and its number there."""
        if time.monotonic() > self._next_use:
            self._next_use = time.monotonic() + _DAY
            for index in self._indices:
                index.mark_used()
        groups = np.searchsorted(self._ends, indices, side="right").tolist()
        return [
            (group, int(index) - self._starts[group]) for group, index in zip(groups, indices, strict=True)
        ]

    def files(self) -> dict[str, str]:
        """Size and hash of each file, by its path in the folder that all of them lie in."""
        reported = [pair for index in self._indices for pair in zip(index.files, index.reports, strict=True)]
        folder = os.path.commonpath([file.path.absolute().parent for file, _ in reported])
        return {
            os.path.relpath(file.path.absolute(), folder): f"{report.size:,} bytes, {report.content[:16]}"
            for file, report in reported
        }

    def _found(self, group: int, number: int) -> tuple[bytes | bytearray, str | None, int, int, int]:
        """What is kept of a document, the file that has it with its place there, its group and number."""
        records, texts, files = self._groups[group]
        place = number * RECORD.itemsize
        record = self._files.read(records, place, RECORD.itemsize)
        file, start, length = np.frombuffer(record, RECORD)[0].item()
        if file == TEXTS:
            return self._files.read(texts, start, length), None, start, group, number
        path, index = files[file], self._indices[group]
        known = (index.states[file], index.reports[file].content)
        return self._files.read(path, start, length, known=known), path, start, group, number

    def _text(self, group: int, number: int) -> str:
        raw, path, start, *_ = self._found(group, number)
        if path is None or path in self._plain:
            return decode(raw)[0]
        try:
            return text_in(parse_object(raw), self._column)[0]
        except ValueError as e:  # it was parsed when the file was indexed
            raise DataError(
                f"'{shown(path)}' was read differently at byte {start:,} when the run started: {e}",
                hint="the disk or the memory may be failing",
            ) from e


def build(section: TextDatasetSection, path: str | None) -> Texts:
    """The documents of the files that ``path`` means; see :func:`hekaton_hf.files.find_files`.

    :raises DataError: when there are none, or a file cannot be read or has not the column.
    """
    return read_texts(
        files_of_text(path),
        column=section.text_column,
        txt_documents=section.txt_documents,
        max_bad_rows=section.max_bad_rows,
    )


def read_texts(
    found: FoundFiles, *, column: str = "text", txt_documents: str = "file", max_bad_rows: int = 0
) -> Texts:
    """The documents of local files, in the order of the files.

    :param max_bad_rows: rows that cannot be read are skipped up to this number of them in all files.
    :raises DataError: naming the file or row that cannot be read, has not the column or no text in it; or
        when there are no documents at all.
    """
    settings = Settings(column, txt_documents)
    indices = index_files(found.files, settings)
    check_and_say(found, indices, settings, max_bad_rows=max_bad_rows)
    return Texts(indices, column=column, fingerprint=identity(indices, settings))
