"""Rows of the global batch: what each one reads next, from one source or from several in turn.

A row's cursor is, with one source, where it is in that (see :mod:`hekaton.data.feed`). With several it is the
number of rows made, and for each source where the row is in it and the tokens that it took from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hekaton.data import Integers, Values
from hekaton.data.answers import tokens_made
from hekaton.data.blend import Blend
from hekaton.data.feed import Feed, Source, SourceReader
from hekaton.data.row_makers import BatchRowMaker
from hekaton.errors import DataError, HekatonError

_MOST_PLACES = 2**62
"""Documents that all rows together can have read: their numbers are of 64 bits."""

_CHANCE = 1_000
"""Documents that a row may skip, though others are among them, before that is no chance."""


@dataclass(frozen=True)
class Stream:
    """What all rows have in common.

    :param sources: what is read.
    :param maker: makes their documents into rows.
    :param rows: number of rows of the global batch.
    :param repeat: read on without an end; otherwise rows end when all sources do.
    :param blend: of which source each row of each step is; ``None`` with one source that is no mixture.
    """

    sources: Sequence[Source]
    maker: BatchRowMaker
    rows: int
    repeat: bool
    blend: Blend | None = None

    @property
    def cursor_width(self) -> int:
        """Numbers in the cursor of a row."""
        width = self.maker.cursor_width
        return width if self.blend is None else 1 + len(self.sources) * (width + 1)


@dataclass(frozen=True)
class Sequences:
    """One sequence of each row that a reader has.

    :param tensors: as the row maker makes them; (rows, ...).
    :param cursor: (rows, cursor width), where the rows are after these sequences.
    :param left: whether any row had something left; otherwise all is padding.
    :param skipped: documents without a token that were met.
    :param ended: numbers of the sources that a row has read to the end.
    :param sources: of each row, the number of its source; -1 for padding.
    """

    tensors: dict[str, Values]
    cursor: Integers
    left: bool
    skipped: int
    ended: frozenset[int]
    sources: Sequence[int]


class RowReader:
    """Reads some rows of a stream from their cursors on, one sequence of each at a time."""

    def __init__(self, stream: Stream, rows: Sequence[int], cursor: Integers) -> None:
        """:param cursor: (rows, cursor width)."""
        self._stream = stream
        joined = getattr(stream.maker, "takes_joined", False)
        self._readers = [
            SourceReader(source, rows=stream.rows, joined=joined, unit=stream.maker.unit)
            for source in stream.sources
        ]
        self.rows = [Row(stream, row, place) for row, place in zip(rows, cursor.tolist(), strict=True)]

    def fill(self, number: int, feeds: Sequence[Feed], tokens: int) -> None:
        """Read on in a source, as :meth:`SourceReader.fill`.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        try:
            self._readers[number].fill(feeds, tokens)
        except HekatonError as e:
            if name := self._stream.sources[number].name:
                e.message = f"source '{name}': {e.message}"
            raise

    def next(self) -> Sequences:
        """The next sequence of each row.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        stream = self._stream
        tensors = stream.maker.empty(len(self.rows))
        found = [-1] * len(self.rows)
        begun: dict[tuple[int, int], int] = {}
        waiting = list(enumerate(self.rows))
        while waiting:
            chosen: dict[int, list[tuple[int, Row]]] = {}
            for index, row in waiting:
                number = row.choose()
                if number is None:
                    continue
                if number in chosen:
                    chosen[number].append((index, row))
                else:
                    chosen[number] = [(index, row)]
            waiting = []
            for number, together in sorted(chosen.items()):
                self.fill(number, [row.feeds[number] for _, row in together], stream.maker.ahead)
                for index, row in together:
                    feed = row.feeds[number]
                    before = feed.cursor, feed.available
                    begun.setdefault((index, number), feed.next_document)
                    out = {name: values[index, ...] for name, values in tensors.items()}
                    made = tokens_made(stream.maker, stream.maker.make(feed, out))
                    if made:
                        row.taken[number] += made
                        found[index] = number
                        if stream.sources[number].has_ended(feed):
                            row.ended |= {number}
                        continue
                    waiting.append((index, row))
                    if before[1] < stream.maker.ahead or feed.cursor == before[0]:
                        feed.leave_all()
                        row.ended |= {number}
                    else:
                        self._check_skipped(number, feed.next_document - begun[index, number])
        for row in self.rows:
            row.made += 1
        skipped = sum(row.skipped() for row in self.rows)
        return Sequences(
            tensors,
            np.array([row.cursor for row in self.rows], np.int64),
            left=any(number >= 0 for number in found),
            skipped=skipped,
            ended=frozenset().union(*(row.ended for row in self.rows)),
            sources=found,
        )

    def _check_skipped(self, number: int, skipped: int) -> None:
        """:raises DataError: where the row maker passed each document more than once, and would for ever."""
        source = self._stream.sources[number]
        if skipped > len(source.documents) + _CHANCE:
            said = f"source '{source.name}': " if source.name else ""
            raise DataError(
                f"{said}no row can be made of {skipped:,} documents one after the other: nothing in it "
                "would be learned",
                hint="raise training.seq_len, or choose another training.packing",
            )


class Row:
    """Where one row is in each source."""

    def __init__(self, stream: Stream, row: int, cursor: Sequence[int]) -> None:
        self._stream = stream
        self._row = row
        self._cursor = list(cursor)
        self.chosen: set[int] = set()
        """The sources that were read from since the cursor was asked for."""
        width = stream.maker.cursor_width
        if stream.blend is None:
            self.made = 0
            self.feeds = [Feed(row, cursor, rows=stream.rows)]
            self.taken = [0]
        else:
            self.made = cursor[0]
            places = [cursor[start : start + width + 1] for start in range(1, len(cursor), width + 1)]
            self.feeds = [Feed(row, place[:-1], rows=stream.rows) for place in places]
            self.taken = [place[-1] for place in places]
        # What has ended follows from the cursor alone: the others' turns depend on it, also after a resume.
        self.ended = frozenset(
            number for number, feed in enumerate(self.feeds) if stream.sources[number].has_ended(feed)
        )

    def choose(self) -> int | None:
        """The source of the next sequence among those that have not ended."""
        if self._stream.blend is None:
            number = None if self.ended else 0
        else:
            number = self._stream.blend.source_of(self.made, self._row, without=self.ended)
        if number is not None:
            self.chosen.add(number)
        return number

    @property
    def cursor(self) -> list[int]:
        width = self._stream.maker.cursor_width
        if self._stream.blend is None:
            return list(self.feeds[0].cursor[:width])
        self._cursor[0] = self.made
        for number in self.chosen:
            start = 1 + number * (width + 1)
            self._cursor[start : start + width + 1] = *self.feeds[number].cursor[:width], self.taken[number]
        self.chosen.clear()
        return self._cursor

    def skipped(self) -> int:
        """Documents without a token since the last call. It is to be asked for before the cursor."""
        count = 0
        for number in self.chosen:
            count += self.feeds[number].skipped
            self.feeds[number].skipped = 0
        return count


def check_cursor(cursor: torch.Tensor) -> None:
    """Check that a cursor of the whole global batch, from a file, is one that ``Loader.cursor`` gives.

    :param cursor: (global_batch_size, cursor width).
    :raises ValueError: when it has a place that no row can come to.
    """
    documents = _MOST_PLACES // len(cursor)
    counts = cursor if cursor.shape[1] > 3 else cursor[:, :1]
    if bool((cursor < 0).any()) or bool((counts > documents).any()):
        raise ValueError("it has a place that no row can come to")
