"""Many steps of token ids made at once, where nothing has to be encoded.

Where the documents of all sources are token ids and rows take them one after the other, the rows of the next
steps can be laid out together. Each step has the sequences and the cursor that
:class:`hekaton.data.rows.RowReader` gives, which makes it wherever this is not possible: near the end of a
source that is not repeated, and where something is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hekaton.data import Integers, JoinedDocuments, Values
from hekaton.data.encoders import IdsEncoder
from hekaton.data.feed import Feed, Span
from hekaton.data.row_makers import InOrder, RowPlaces
from hekaton.data.rows import RowReader, Sequences, Stream
from hekaton.errors import DataError

TOKENS = 2**21
"""About how many tokens of each source are read at once for all rows together."""
LAID_OUT = 2**14
"""About how many of them are laid out at once: tensors of more would leave the cache of a core."""
MOST_STEPS = 512
MOST_SOURCES = 4
"""No more tokens are read at once than those of so many sources."""
_NONE = np.zeros(0, np.int64)


def reader_of(stream: Stream, rows: Sequence[int], cursor: Integers) -> RowReader | BlockReader:
    """What reads some rows of a stream from their cursors on.

    :param cursor: (rows, cursor width).
    """
    return BlockReader(stream, rows, cursor) if joins(stream) else RowReader(stream, rows, cursor)


def joins(stream: Stream) -> bool:
    """Whether rows are tokens of documents one after the other, as they are."""
    # An encoder or a row maker that is not exactly ours may do more than look at ids.
    return type(stream.maker) is InOrder and all(
        type(source.encoder) is IdsEncoder and isinstance(source.documents, JoinedDocuments)
        for source in stream.sources
    )


class BlockReader:
    """Reads some rows of a stream of token ids from their cursors on, one sequence of each at a time."""

    def __init__(self, stream: Stream, rows: Sequence[int], cursor: Integers) -> None:
        """:param cursor: (rows, cursor width)."""
        assert isinstance(stream.maker, InOrder)
        self._stream, self._maker, self._numbers = stream, stream.maker, list(rows)
        self._reader = RowReader(stream, rows, cursor)
        self._cursor = cursor
        """After the last step that was made."""
        self._made: Iterator[Sequences] = iter(())
        step = len(self._numbers) * stream.maker.seq_len
        self._most = max(1, min(MOST_STEPS, TOKENS * min(MOST_SOURCES, len(stream.sources)) // step))
        self._together = 1

    def next(self) -> Sequences:
        """The next sequence of each row.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        step = next(self._made, None)
        if step is None:
            self._made = self._make()
            step = next(self._made, None)
        if step is None:
            step = self._reader.next()
            self._cursor = step.cursor
        return step

    def _make(self) -> Iterator[Sequences]:
        """The next steps; none where they have to be made one by one."""
        steps = self._together
        chosen = self._chosen(steps) if steps else None
        try:
            enough = chosen is not None and self._read_ahead(chosen)
        except DataError:
            # It is met again where its document is needed, by rows that have read nothing of it.
            self._reader = RowReader(self._stream, self._numbers, self._cursor)
            self._together = self._most = 0
            return iter(())
        if not enough:
            self._together = min(max(1, steps // 2), self._most)
            return iter(())
        assert chosen is not None
        self._together = min(2 * steps, self._most)
        return self._laid_out(chosen)

    def _chosen(self, steps: int) -> Integers | None:
        """(steps, rows), the source of each row of the next steps, which may be fewer than asked for."""
        rows, blend = self._reader.rows, self._stream.blend
        ended = [row.ended for row in rows]
        if blend is None:
            return None if any(ended) else np.zeros((steps, len(rows)), np.int64)
        if len({row.made for row in rows}) > 1:
            return None
        return blend.sources_of(rows[0].made, steps, self._numbers, without=ended)

    def _read_ahead(self, chosen: Integers) -> bool:
        """Read the tokens of some steps, and the one behind those of each row.

        :returns: whether there are so many.
        """
        enough = True
        for number in range(len(self._stream.sources)):
            counts = (chosen == number).sum(axis=0)
            feeds = [self._reader.rows[row].feeds[number] for row in counts.nonzero()[0].tolist()]
            if feeds:
                self._reader.fill(number, feeds, int(counts.max()) * self._maker.seq_len + 1)
            needed = counts[counts > 0] * self._maker.seq_len
            enough = enough and all(
                feed.available > count for feed, count in zip(feeds, needed.tolist(), strict=True)
            )
        return enough

    def _laid_out(self, chosen: Integers) -> Iterator[Sequences]:
        """The steps, laid out as they are asked for.

        :param chosen: (steps, rows), the source of each row.
        """
        (steps, rows), seq_len = chosen.shape, self._maker.seq_len
        read = list(self._taken(chosen))
        views: list[Values] = [_NONE] * (steps * rows)
        begins = []
        cursors = np.repeat(self._cursor[None], steps, axis=0)
        for number, index, its_steps, taken in read:
            at = its_steps * rows + index
            for place, ids in zip(at.tolist(), taken.ids, strict=True):
                views[place] = ids
            in_row = (taken.begins - 1) // seq_len
            begins.append(at[in_row] * (seq_len + 1) + taken.begins - in_row * seq_len)
            made = np.zeros(steps, np.int64)
            made[its_steps] = 1
            made = made.cumsum()
            if self._stream.blend is None:
                cursors[:, index] = taken.places[made]
            else:
                place = 1 + 3 * number
                cursors[:, index, place : place + 2] = taken.places[made]
                cursors[:, index, place + 2] += made * seq_len
        if self._stream.blend is not None:
            cursors[:, :, 0] += np.arange(1, steps + 1)[:, None]
        self._cursor = cursors[-1]
        skipped = sum(row.skipped() for row in self._reader.rows)
        ended = frozenset[int]().union(*(row.ended for row in self._reader.rows))
        places = self._maker.places(np.sort(np.concatenate(begins)), steps * rows)
        return self._steps(views, places, chosen, cursors, skipped, ended)

    def _taken(self, chosen: Integers) -> Iterator[tuple[int, int, Integers, Taken]]:
        """What each row takes from each source: the source, which of the rows, in which steps, and what."""
        for row in self._reader.rows:
            row.made += len(chosen)
        for number in range(len(self._stream.sources)):
            its = chosen == number
            for index in its.any(axis=0).nonzero()[0].tolist():
                steps = its[:, index].nonzero()[0]
                row = self._reader.rows[index]
                row.chosen.add(number)
                row.taken[number] += len(steps) * self._maker.seq_len
                yield number, index, steps, take(row.feeds[number], len(steps), self._maker.seq_len)

    def _steps(
        self,
        views: Sequence[Values],
        places: RowPlaces,
        chosen: Integers,
        cursors: Integers,
        skipped: int,
        ended: frozenset[int],
    ) -> Iterator[Sequences]:
        (steps, rows), seq_len = chosen.shape, self._maker.seq_len
        # Whole steps, or some rows of one.
        part = max(1, LAID_OUT // seq_len)
        part = part - part % rows if part >= rows else part
        made = max(part, rows)
        bounds = [
            [*range(first, min(first + made, steps * rows), part)] for first in range(0, steps * rows, made)
        ]
        cuts = places.cut([bound * seq_len for its in bounds for bound in its] + [steps * rows * seq_len])
        sources = iter(chosen.tolist())
        step = 0
        for its in bounds:
            first, last = its[0], min(its[0] + made, steps * rows)
            tensors = self._maker.unfilled(last - first)
            for begin, end in zip(its, [*its[1:], last], strict=True):
                ids = np.concatenate(views[begin:end]).reshape(-1, seq_len + 1)
                out = {name: values[begin - first : end - first] for name, values in tensors.items()}
                self._maker.make_many(ids, next(cuts), out)
            for row in range(0, last - first, rows):
                yield Sequences(
                    {name: values[row : row + rows] for name, values in tensors.items()},
                    cursors[step],
                    left=True,
                    skipped=0 if step else skipped,
                    ended=ended,
                    sources=next(sources),
                )
                step += 1


@dataclass(frozen=True)
class Taken:
    """What some rows of a feed have, one after the other.

    :param ids: of each row its tokens, and the one that follows.
    :param begins: where documents begin in the tokens of all rows and the one that follows, but for the
        first.
    :param places: (rows + 1, 2), the documents and tokens read before the first row and after each.
    """

    ids: list[Values]
    begins: Integers
    places: Integers


def take(feed: Feed, rows: int, seq_len: int) -> Taken:
    """Take the tokens of rows off a feed that has more of them ahead."""
    count = rows * seq_len
    spans: list[Span] = []
    before = [0]
    for span in feed.spans:
        spans.append(span)
        before.append(before[-1] + len(span.ids))
        if before[-1] > count:
            break
    # Of each document, or what is left of it, where it begins in the ids, its number, and at which token.
    entries = sum(len(span.starts) + 1 for span in spans)
    start, document, offset = np.zeros((3, entries), np.int64)
    last = 0
    for span, its_start in zip(spans, before, strict=False):
        first, last = last, last + len(span.starts) + 1
        start[first], offset[first] = its_start, span.offset
        np.add(span.starts, its_start, out=start[first + 1 : last])
        document[first:last] = np.arange(span.document, span.last_document + 1)
    reached = int(start.searchsorted(count, side="right"))
    begins = start[1:reached][offset[1:reached] == 0]
    ends = np.arange(0, count + 1, seq_len)
    its = start.searchsorted(ends, side="right") - 1
    places = np.empty((rows + 1, 2), np.int64)
    places[:, 0] = document[its]
    places[:, 1] = offset[its] + ends - start[its]
    feed.take(count)
    return Taken(list(_rows_of([span.ids for span in spans], rows, seq_len)), begins, places)


def _rows_of(spans: Sequence[Values], rows: int, seq_len: int) -> Iterator[Values]:
    """(seq_len + 1,), the tokens of each row and the one that follows: copied only where spans meet."""
    begun = spans[0][:0]
    for ids in spans:
        start = 0
        if len(begun):
            start = seq_len - len(begun)
            begun = np.concatenate([begun, ids[: start + 1]])
            if len(begun) <= seq_len:
                continue
            yield begun
            rows -= 1
        while rows and start + seq_len < len(ids):
            yield ids[start : start + seq_len + 1]
            start += seq_len
            rows -= 1
        if not rows:
            return
        begun = ids[start:]
