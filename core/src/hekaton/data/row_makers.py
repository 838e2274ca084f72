"""What makes one row of a batch from the documents ahead of it."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hekaton.data import Integers, Values
from hekaton.data.feed import Feed, Span
from hekaton.loss import IGNORE_INDEX

_SHORT = 2**12
"""Documents of fewer tokens are short: positions in them are kept at hand for each length."""


@runtime_checkable
class BatchRowMaker(Protocol):
    """Makes rows of one kind from documents. It keeps nothing of its own between rows but ``Feed.made``.

    One that has ``takes_joined = True`` may find spans of several documents in its feeds (``Span.starts``).
    One that has ``row_is_document = True`` makes a row of each document: a validation of so many rows is then
    of as many documents, also where some of them give nothing.
    """

    @property
    def unit(self) -> str:
        """What the work of a run is counted in: speed and floating-point operations are per unit."""

    @property
    def units_per_row(self) -> int: ...

    @property
    def ahead(self) -> int:
        """Tokens that are read ahead before a row is made, as far as there are so many."""

    @property
    def cursor_width(self) -> int:
        """2 where a row is where it is by the documents and tokens read; 3 with ``Feed.made``."""

    def empty(self, rows: int) -> dict[str, Values]:
        """Tensors of so many rows of padding, (rows, ...) each, of any type."""

    def make(self, feed: Feed, out: Mapping[str, Values]) -> int:
        """Make the next row: take its tokens from ``feed`` and write it into ``out``.

        :param out: a row of each of the tensors of :meth:`empty`.
        :returns: the tokens in the row; 0 when nothing that can be learned from is ahead. It is asked again
            where it has taken what is ahead, counted in ``feed.skipped``, and there is more to read.
        """


@dataclass(frozen=True)
class _Rows:
    """What the row makers of texts have in common: rows of ``seq_len`` tokens with labels."""

    seq_len: int
    packs_documents: bool = True
    unit = "tokens"
    cursor_width = 2

    @property
    def units_per_row(self) -> int:
        return self.seq_len

    @property
    def ahead(self) -> int:
        return self.seq_len + 1

    def empty(self, rows: int) -> dict[str, Integers]:
        shape = (rows, self.seq_len)
        tensors = {"tokens": np.zeros(shape, np.int64), "labels": np.full(shape, IGNORE_INDEX, np.int64)}
        if self.packs_documents:
            tensors["positions"] = np.broadcast_to(np.arange(self.seq_len), shape).copy()
        return tensors


class InOrder(_Rows):
    """``documents`` and ``concat``: documents one after the other, cut into rows. A document goes on in the
    next row. With ``documents`` positions restart at each document and each row, and the last token of a
    document predicts nothing (label ``IGNORE_INDEX``); with ``concat`` it predicts the first of the next."""

    takes_joined = True

    def make(self, feed: Feed, out: Mapping[str, Integers]) -> int:
        if feed.available <= 1:  # a last token alone predicts nothing
            return 0
        spans = feed.take(self.seq_len)
        lay_out(spans, feed.spans[0] if feed.spans else None, out)
        return sum(len(span.ids) for span in spans)

    def unfilled(self, rows: int) -> dict[str, Integers]:
        """The tokens and labels of :meth:`empty`, with anything in them."""
        return {name: np.empty((rows, self.seq_len), np.int64) for name in ("tokens", "labels")}

    def fill(self, out: Mapping[str, Integers], ids: Values) -> None:
        """Fill rows with tokens, every one of which is a target.

        :param out: so many rows of :meth:`unfilled`.
        :param ids: (rows, seq_len + 1), the tokens of each row and the one that follows.
        """
        out["tokens"][:] = ids[:, :-1]
        out["labels"][:] = ids[:, 1:]

    def documents_in(self, lengths: Integers, counts: Integers, rows: int) -> Iterator[DocumentsInRows]:
        """Where documents are in the rows of each step.

        :param lengths: of the parts of documents that rows and the token that follows each are made of.
        :param counts: (steps * rows,), how many of them a row has.
        """
        ends = counts.cumsum()
        row = np.arange(len(counts)).repeat(counts)
        begins = lengths.cumsum() - lengths - row  # in rows of seq_len
        later = np.ones(len(lengths), np.bool_)
        later[ends - counts] = False
        before = (begins[later] - 1) % (rows * self.seq_len)
        lengths = lengths.copy()
        lengths[ends - 1] -= 1
        first = 0
        for step, last in enumerate(ends[rows - 1 :: rows].tolist()):
            its = slice(first - step * rows, last - (step + 1) * rows)
            yield DocumentsInRows(before[its], lengths[first:last].tolist())
            first = last

    def tell_apart(self, out: dict[str, Integers], documents: DocumentsInRows) -> None:
        """Finish rows, with the documents in them.

        :param out: filled rows, which get positions.
        """
        if self.packs_documents:
            out["labels"].reshape(-1)[documents.ends] = IGNORE_INDEX
            out["positions"] = _positions(documents.lengths).reshape(-1, self.seq_len)


@dataclass(frozen=True)
class DocumentsInRows:
    """Where documents are in rows, laid flat.

    :param ends: places of their last tokens.
    :param lengths: of the parts of documents in them, one after the other.
    """

    ends: Integers
    lengths: list[int]


def _positions(lengths: Sequence[int]) -> Integers:
    """The integers below each length: copied, which costs less than to compute them."""
    short, most = _below_each(), _SHORT
    parts = [short[length] if length < most else _below(length) for length in lengths]
    return np.frombuffer(bytearray().join(parts), np.int64)


@functools.lru_cache(1)
def _below_each() -> list[memoryview]:
    """The integers below 0, 1, 2, ...: the lengths of most documents."""
    return [_below(length) for length in range(_SHORT)]


def _below(length: int) -> memoryview:
    return _counted(length.bit_length())[:length]


@functools.lru_cache
def _counted(bits: int) -> memoryview:
    counted: Any = np.arange(1 << bits)
    return memoryview(counted)


class OnePerRow(_Rows):
    """``one_per_row``: a row is one document, cut off at its end where it is longer. One of which nothing is
    learned then is skipped."""

    def make(self, feed: Feed, out: Mapping[str, Integers]) -> int:
        while feed.spans:
            document = feed.spans[0].document
            spans, count = [], self.seq_len
            while count and feed.spans and feed.spans[0].document == document:
                (span,) = feed.take(min(count, len(feed.spans[0].ids)))
                spans.append(span)
                count -= len(span.ids)
            ahead = feed.spans[0] if feed.spans and feed.spans[0].document == document else None
            feed.leave(document)
            if _has_targets(spans, ahead):
                lay_out(spans, ahead, out)
                return sum(len(span.ids) for span in spans)
            feed.skipped += 1
        return 0


def _has_targets(spans: Sequence[Span], ahead: Span | None) -> bool:
    """Whether any token is a label.

    :param spans: of one document, from its beginning.
    :param ahead: what follows in the document.
    """
    if ahead is not None and (ahead.targets is None or ahead.targets[0]):
        return True
    for number, span in enumerate(spans):
        first = 0 if number else 1
        if len(span.ids) > first if span.targets is None else span.targets[first:].any():
            return True
    return False


class BestFit(_Rows):
    """``best_fit``: documents are put together so that few are cut (Ding et al., "Fewer Truncations Improve
    Language Modeling", 2024): best-fit decreasing over the tokens of ``ROWS`` rows at a time. What is longer
    than a row is cut into rows; what does not fill a row is padded."""

    ROWS = 16
    cursor_width = 3

    @property
    def ahead(self) -> int:
        return self.ROWS * self.seq_len + 1

    def make(self, feed: Feed, out: Mapping[str, Integers]) -> int:
        if feed.available <= 1:
            return 0
        at = feed.cursor[:2]
        if feed.kept is None or feed.kept[0] != at:
            feed.kept = at, self._packed(feed)
        rows = feed.kept[1]
        pieces = rows[min(feed.made, len(rows) - 1)]
        begin = 0
        for span, following in pieces:
            end = begin + len(span.ids)
            lay_out([span], following, {name: values[begin:end] for name, values in out.items()})
            begin = end
        if begin < self.seq_len:
            out["positions"][begin:] = np.arange(self.seq_len - begin)
        feed.made += 1
        if feed.made >= len(rows):
            feed.take(self.ROWS * self.seq_len)
            feed.made, feed.kept = 0, None
        return begin

    def _packed(self, feed: Feed) -> list[list[tuple[Span, Span | None]]]:
        """The rows of what is ahead: pieces of documents, each with what follows it in its document."""
        pieces = self._pieces(feed)
        free = [(self.seq_len, 0)]
        rows: list[list[tuple[Span, Span | None]]] = [[]]
        for piece in sorted(pieces, key=lambda piece: -len(piece[0].ids)):
            length = len(piece[0].ids)
            place = bisect.bisect_left(free, (length, -1))
            if place == len(free):
                rows.append([])
                left, row = self.seq_len, len(rows) - 1
            else:
                left, row = free.pop(place)
            rows[row].append(piece)
            bisect.insort(free, (left - length, row))
        return [row for row in rows if row]

    def _pieces(self, feed: Feed) -> list[tuple[Span, Span | None]]:
        documents: list[Span] = []
        count = 0
        for span in feed.spans:
            if documents and documents[-1].document == span.document:
                documents[-1] = _joined(documents[-1], span)
            else:
                documents.append(span)
            count += len(span.ids)
            if count > self.ROWS * self.seq_len:
                break
        pieces: list[tuple[Span, Span | None]] = []
        left = self.ROWS * self.seq_len
        for rest in documents:
            following: Span | None = rest
            while following is not None and left:
                length = min(self.seq_len, left, len(following.ids))
                span, after = following.cut(length)
                following = after if len(after.ids) else None
                left -= length
                if length > 1 or following is not None:
                    pieces.append((span, following))
        return pieces or [(documents[0], None)]


def _joined(first: Span, second: Span) -> Span:
    targets = None
    if first.targets is not None and second.targets is not None:
        targets = np.concatenate([first.targets, second.targets])
    return Span(first.document, first.offset, np.concatenate([first.ids, second.ids]), targets)


def lay_out(spans: Sequence[Span], ahead: Span | None, out: Mapping[str, Integers]) -> None:
    """Write spans one after the other into the beginning of a row of padding.

    :param ahead: what follows: its first token is the last label.
    :param out: ``tokens``, ``labels``, and ``positions`` where documents are kept apart; (seq_len,) each.
    """
    tokens, labels, positions = out["tokens"], out["labels"], out.get("positions")
    end = 0
    begins = [0]
    last = len(spans) - 1
    for number, span in enumerate(spans):
        following = spans[number + 1] if number < last else ahead
        start, end = end, end + len(span.ids)
        tokens[start:end] = span.ids
        if span.targets is None:
            labels[start : end - 1] = tokens[start + 1 : end]
        else:
            labels[start : end - 1] = np.where(span.targets[1:], span.ids[1:], IGNORE_INDEX)
        if positions is not None and (len(span.starts) or len(span.breaks)):
            within = span.starts + start
            if len(span.breaks):
                within = np.union1d(within, span.breaks[span.breaks > 0] + start)
            labels[within - 1] = IGNORE_INDEX
            begins += within.tolist()
        ends_document = following is None or following.document != span.last_document or following.begins_anew
        if following is not None and not (ends_document and positions is not None):
            is_target = following.targets is None or following.targets[0]
            labels[end - 1] = following.ids[0] if is_target else IGNORE_INDEX
        if ends_document or number == last:
            begins.append(end)
    if positions is not None:
        edges = np.array([*begins, len(positions)])
        count = np.arange(len(positions))
        np.subtract(count, np.repeat(edges[:-1], edges[1:] - edges[:-1]), out=positions)


def documents(section: Any, seq_len: int) -> InOrder:
    return InOrder(seq_len)


def concat(section: Any, seq_len: int) -> InOrder:
    return InOrder(seq_len, packs_documents=False)


def one_per_row(section: Any, seq_len: int) -> OnePerRow:
    return OnePerRow(seq_len)


def best_fit(section: Any, seq_len: int) -> BestFit:
    return BestFit(seq_len)
