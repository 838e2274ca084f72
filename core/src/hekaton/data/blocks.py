"""Many steps of token ids made at once, where nothing has to be encoded.

Where the documents of all sources are token ids and rows take them one after the other, the rows of the next
steps can be laid out together. Each step has the sequences and the cursor that
:class:`hekaton.data.rows.RowReader` gives, which makes it wherever this is not possible: near the end of a
source that is not repeated, and where something is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from hekaton.data import Integers, JoinedDocuments, Values
from hekaton.data.ahead import SourceAhead, ranges
from hekaton.data.encoders import IdsEncoder
from hekaton.data.joining import in_one, joined
from hekaton.data.row_makers import InOrder
from hekaton.data.rows import RowReader, Sequences, Stream
from hekaton.errors import DataError

TOKENS = 2**23
"""About how many tokens of each source are looked up at once for all rows together."""
PARTS = 2**18
"""About how many parts of documents they are at most, which take 100 bytes of memory each for the time."""
LAID_OUT = 2**17
"""About how many of them are read at once: they are to stay in the cache of a core until tensors are made."""
MOST_STEPS = 1024
MOST_SOURCES = 4
"""No more tokens are looked up or read at once than those of so many sources."""


def reader_of(stream: Stream, rows: Sequence[int], cursor: Integers) -> RowReader | BlockReader:
    """What reads some rows of a stream from their cursors on.

    :param cursor: (rows, cursor width).
    """
    return BlockReader(stream, rows, cursor) if joins(stream) else RowReader(stream, rows, cursor)


def joins(stream: Stream) -> bool:
    """Whether rows are tokens of documents one after the other, as they are."""
    # An encoder or a row maker that is not exactly ours may do more than look at ids.
    encoders = [source.encoder for source in stream.sources]
    return (
        type(stream.maker) is InOrder
        and all(type(encoder) is IdsEncoder for encoder in encoders)
        and len({cast(IdsEncoder, encoder).vocab_size for encoder in encoders}) == 1
        and all(isinstance(source.documents, JoinedDocuments) for source in stream.sources)
    )


class BlockReader:
    """Reads some rows of a stream of token ids from their cursors on, one sequence of each at a time."""

    def __init__(self, stream: Stream, rows: Sequence[int], cursor: Integers) -> None:
        """:param cursor: (rows, cursor width)."""
        assert isinstance(stream.maker, InOrder)
        self._stream, self._maker, self._numbers = stream, stream.maker, list(rows)
        self._cursor = cursor
        """After the last step that was given."""
        self._ahead: list[SourceAhead] | None = None
        """Of each source, where steps can be made together."""
        self._reader: RowReader | None = None
        """What makes steps where they cannot."""
        self._made: Iterator[Sequences] = iter(())
        step = len(self._numbers) * stream.maker.seq_len
        self._most = max(1, min(MOST_STEPS, TOKENS * min(MOST_SOURCES, len(stream.sources)) // step))
        self._together = 1

    def next(self) -> Sequences:
        """The next sequence of each row.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        try:
            step = next(self._made, None)
            if step is None:
                self._made = self._make()
                step = next(self._made, None)
        except DataError:
            # It is met again where its document is needed, by rows that have read nothing of it.
            self._together, step = 0, None
            self._made = iter(())
        if step is None:
            self._ahead = None
            if self._reader is None:
                self._reader = RowReader(self._stream, self._numbers, self._cursor)
            step = self._reader.next()
        self._cursor = step.cursor
        return step

    def _make(self) -> Iterator[Sequences]:
        """The next steps; none where they have to be made one by one."""
        steps = self._together
        while steps:
            chosen = self._chosen(steps)
            if chosen is None:
                break
            if self._read_ahead(chosen):
                self._reader = None
                self._together = min(2 * len(chosen), self._most)
                return self._laid_out(chosen)
            self._together = 1
            steps = len(chosen) // 2
        return iter(())

    def _chosen(self, steps: int) -> Integers | None:
        """(steps, rows), the source of each row of the next steps, which may be fewer than asked for."""
        blend, rows = self._stream.blend, len(self._numbers)
        ended = self._ended()
        if blend is None:
            return None if any(ended) else np.zeros((steps, rows), np.int64)
        made = set(self._cursor[:, 0].tolist())
        if len(made) > 1:
            return None
        return blend.sources_of(made.pop(), steps, self._numbers, without=ended)

    def _ended(self) -> list[frozenset[int]]:
        """The sources that each row has read to the end."""
        last = [(number, source.places) for number, source in enumerate(self._stream.sources)]
        return [
            frozenset(
                number
                for number, places in last
                if places is not None and documents[number] * self._stream.rows + row >= places
            )
            for row, documents in zip(self._numbers, self._places()[..., 0].tolist(), strict=True)
        ]

    def _places(self) -> Integers:
        """(rows, sources, 2), the documents and tokens that rows have read of each source."""
        if self._stream.blend is None:
            return self._cursor[:, None]
        return self._cursor[:, 1:].reshape(len(self._cursor), -1, 3)[..., :2]

    def _read_ahead(self, chosen: Integers) -> bool:
        """Look up the documents of some steps, and of the token behind those of each row.

        :returns: whether there are so many.
        """
        if self._ahead is None:
            places = self._places().tolist()
            self._ahead = [
                SourceAhead(
                    source,
                    [(row, *its[number]) for row, its in zip(self._numbers, places, strict=True)],
                    rows=self._stream.rows,
                )
                for number, source in enumerate(self._stream.sources)
            ]
        enough = True
        for number, ahead in enumerate(self._ahead):
            needed = ((chosen == number).sum(axis=0) * self._maker.seq_len).tolist()
            wanted = [(row, tokens + 1) for row, tokens in zip(ahead.rows, needed, strict=True) if tokens]
            enough = enough and ahead.read_on(wanted)
        return enough

    def _laid_out(self, chosen: Integers) -> Iterator[Sequences]:
        """The steps, laid out as they are asked for.

        :param chosen: (steps, rows), the source of each row.
        """
        assert self._ahead is not None
        (steps, rows), seq_len = chosen.shape, self._maker.seq_len
        counts = np.empty(steps * rows, np.int64)
        taken = []
        cursors = np.repeat(self._cursor[None], steps, axis=0)
        ended = frozenset[int]().union(*self._ended())
        for number, ahead in enumerate(self._ahead):
            its = chosen == number
            for index in its.any(axis=0).nonzero()[0].tolist():
                made = its[:, index].cumsum()
                sequences = its[:, index].nonzero()[0] * rows + index
                one = ahead.rows[index].take(len(sequences), seq_len)
                counts[sequences] = one.counts
                taken.append((sequences, one))
                if self._stream.blend is None:
                    cursors[:, index] = one.places[made]
                else:
                    place = 1 + 3 * number
                    cursors[:, index, place : place + 2] = one.places[made]
                    cursors[:, index, place + 2] += made * seq_len
        if self._stream.blend is not None:
            cursors[:, :, 0] += np.arange(1, steps + 1)[:, None]
        starts = counts.cumsum() - counts
        parts = np.empty((int(counts.sum()), 3), np.int64)
        for sequences, one in taken:
            parts[ranges(starts[sequences], one.counts)] = one.parts
        self._together = min(self._together, max(1, PARTS * steps // len(parts)))
        skipped = sum(one.skipped for _, one in taken)
        return self._steps(parts, counts, chosen, cursors, skipped, ended)

    def _steps(
        self,
        parts: Integers,
        counts: Integers,
        chosen: Integers,
        cursors: Integers,
        skipped: int,
        ended: frozenset[int],
    ) -> Iterator[Sequences]:
        """:param parts: (n, 3), where what rows are made of lies, as :class:`hekaton.data.ahead.Taken` says.
        :param counts: (steps * rows,), how many of these a row has.
        """
        rows = chosen.shape[1]
        documents = self._maker.documents_in(parts[:, 2] - parts[:, 1], counts, rows)
        sources = iter(chosen.tolist())
        step = row = 0
        for ids in self._read(parts, counts, chosen):
            if row == 0:
                tensors = self._maker.unfilled(rows)
            self._maker.fill({name: values[row : row + len(ids)] for name, values in tensors.items()}, ids)
            row += len(ids)
            if row == rows:
                self._maker.tell_apart(tensors, next(documents))
                yield Sequences(
                    tensors,
                    cursors[step],
                    left=True,
                    skipped=0 if step else skipped,
                    ended=ended,
                    sources=next(sources),
                )
                step, row = step + 1, 0
                del tensors, ids  # their memory, still in the cache of the core, is that of the next step

    def _read(self, parts: Integers, counts: Integers, chosen: Integers) -> Iterator[Values]:
        """(rows, seq_len + 1), the ids of rows and of the token that follows: all rows of a step, or some."""
        (steps, rows), sources = chosen.shape, chosen.reshape(-1)
        together = max(1, LAID_OUT * min(MOST_SOURCES, len(self._stream.sources)) // self._maker.seq_len)
        unit = max(together - together % rows, rows)  # whole steps, or some rows of one
        ends = [0, *counts.cumsum().tolist()]
        for first in range(0, steps * rows, unit):
            last = min(first + unit, steps * rows)
            for begin in range(first, last, together):
                end = min(begin + together, last)
                ids = self._ids(parts[ends[begin] : ends[end]], counts[begin:end], sources[begin:end])
                for row in range(0, len(ids), rows):
                    yield ids[row : row + rows]
                del ids

    def _ids(self, parts: Integers, counts: Integers, sources: Integers) -> Values:
        """The ids of some rows.

        :param counts: how many parts each has.
        :param sources: of each.
        """
        documents = [cast(JoinedDocuments, source.documents) for source in self._stream.sources]
        if len(documents) == 1:
            ids = joined(documents[0], parts)
        else:
            of_parts = sources.repeat(counts)
            dtype = np.result_type(*(one.dtype for one in documents))
            views = {
                number: documents[number].views(parts[of_parts == number], dtype)
                for number in set(sources.tolist())
            }
            ids = in_one(map(next, map(views.__getitem__, of_parts.tolist())), dtype, number=len(parts))
        cast(IdsEncoder, self._stream.sources[0].encoder).check(ids)
        return ids.reshape(-1, self._maker.seq_len + 1)
