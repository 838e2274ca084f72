"""The documents ahead of rows that are token ids: where they lie, and which parts of them are in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hekaton.data import Integers, JoinedDocuments
from hekaton.data.answers import indices_at
from hekaton.data.feed import Source

_PLACES = 2**15
"""Documents that are looked up at once, for all rows together; the first time so many for a row:"""
_FEWEST = 64


@dataclass(slots=True)
class RowAhead:
    """The documents ahead of one row in one source.

    :param document: where the row is: the documents that it has read to the end, and tokens of the next.
    :param next_document: the next one to look up.
    :param tokens: how many are ahead.
    :param numbers: in the row, of the documents ahead that are not empty.
    :param located: (n, 3), where those lie, the first from where the row is in it.
    """

    row: int
    document: int
    offset: int
    next_document: int
    tokens: int = 0
    numbers: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    located: Integers = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    def append(self, located: Integers) -> bool:
        """Add the next documents.

        :returns: whether they can be those; a row cannot be beyond the end of its document.
        """
        if self.offset and self.next_document == self.document:
            located = located.copy()
            located[0, 1] += self.offset
            if located[0, 1] >= located[0, 2]:
                return False
        lengths = located[:, 2] - located[:, 1]
        kept = lengths > 0
        numbers = np.arange(self.next_document, self.next_document + len(located))
        self.numbers = np.concatenate([self.numbers, numbers[kept]])
        self.located = np.concatenate([self.located, located[kept]])
        self.next_document += len(located)
        self.tokens += int(lengths.sum())
        return True

    def take(self, rows: int, seq_len: int) -> Taken:
        """Take the tokens of rows, where more of them are ahead."""
        lengths = self.located[:, 2] - self.located[:, 1]
        ends = lengths.cumsum()
        starts = ends - lengths
        bounds = np.arange(0, rows * seq_len + 1, seq_len)
        at = ends.searchsorted(bounds, side="right")
        counts = at[1:] - at[:-1] + 1
        which = ranges(at[:-1], counts)
        first = bounds[:-1].repeat(counts)
        parts = self.located[which]
        shift = parts[:, 1] - starts[which]
        parts[:, 1] = np.maximum(starts[which], first) + shift
        parts[:, 2] = np.minimum(ends[which], first + (seq_len + 1)) + shift
        offsets = bounds - starts[at]
        offsets[at == 0] += self.offset
        places = np.empty((rows + 1, 2), np.int64)
        places[:, 0], places[:, 1] = self.numbers[at], offsets
        places[0] = self.document, self.offset  # where an empty document may be next
        last, before = int(at[-1]), self.document
        self.document, self.offset = places[-1].tolist()
        self.tokens -= rows * seq_len
        self.numbers, self.located = self.numbers[last:], self.located[last:].copy()
        self.located[0, 1] += int(bounds[-1] - starts[last])
        return Taken(parts, counts, places, skipped=self.document - before - last)


@dataclass(frozen=True)
class Taken:
    """Some rows of one source, one after the other.

    :param parts: (n, 3), where the parts of documents lie that rows are made of, each row with the token that
        follows it. Each but the first of a row is the beginning of a document.
    :param counts: (rows,), how many of these a row has.
    :param places: (rows + 1, 2), the documents and tokens read before the first row and after each.
    :param skipped: documents without a token that were passed.
    """

    parts: Integers
    counts: Integers
    places: Integers
    skipped: int


class SourceAhead:
    """The documents ahead of rows in one source of token ids."""

    def __init__(self, source: Source, places: Sequence[tuple[int, int, int]], *, rows: int) -> None:
        """:param places: of each row its number, and its documents and tokens read.
        :param rows: of the global batch.
        """
        assert isinstance(source.documents, JoinedDocuments)
        self._source, self._documents, self._rows = source, source.documents, rows
        self.rows = [RowAhead(row, document, offset, document) for row, document, offset in places]
        self._seen = self._tokens = 0
        """Documents looked up so far, and their tokens."""

    def read_on(self, wanted: Sequence[tuple[RowAhead, int]]) -> bool:
        """Look up documents until rows have so many tokens ahead.

        :returns: whether there are so many.
        :raises DataError: when documents cannot be located.
        """
        count = len(self._source.documents)
        fruitless = 0
        while short := [(ahead, tokens) for ahead, tokens in wanted if ahead.tokens < tokens]:
            most = max(1, _PLACES // len(short))
            missing = max(tokens - ahead.tokens for ahead, tokens in short)
            # A few more than will do on average, so that few are to be looked up once more.
            number = missing * self._seen * 9 // (8 * self._tokens) if self._tokens else 0
            number = min(most, max(number, _FEWEST))
            seen, tokens = self._seen, self._tokens
            if not self._look_up([ahead for ahead, _ in short], number):
                return False
            fruitless = 0 if self._tokens > tokens else fruitless + self._seen - seen
            if fruitless > count:  # none has a token, or all that have are other rows'
                return False
        return True

    def _look_up(self, short: Sequence[RowAhead], number: int) -> bool:
        """Look up so many documents of each row.

        :returns: whether each has any more.
        """
        first = np.array([ahead.next_document for ahead in short])
        row = np.array([ahead.row for ahead in short])
        places = (first[:, None] + np.arange(number)) * self._rows + row[:, None]
        counts = np.full(len(short), number)
        if (last := self._source.places) is not None:
            counts = (places < last).sum(axis=1)
            places = places[places < last]
        if not counts.all():
            return False
        indices = indices_at(self._source.order, places.reshape(-1), documents=len(self._source.documents))
        located = self._documents.locate(indices)
        self._seen += len(located)
        self._tokens += int((located[:, 2] - located[:, 1]).sum())
        parts = np.split(located, counts.cumsum()[:-1])
        return all(ahead.append(its) for ahead, its in zip(short, parts, strict=True))


def ranges(firsts: Integers, counts: Integers) -> Integers:
    """So many integers from each of some, one after the other."""
    ends = counts.cumsum()
    found: Integers = np.arange(ends[-1]) + (firsts - ends + counts).repeat(counts)
    return found
