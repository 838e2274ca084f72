"""The documents of one row, encoded as they are needed, and where the row is in them.

Row i of B reads the documents at places i, B + i, 2B + i, ... of a source's order. A row is where it is by
two numbers alone: how many documents it has read to the end, and how many tokens of the next. So what a row
reads does not depend on who reads it, nor on which rows are read together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.data import (
    DocumentEncoder,
    DocumentOrder,
    Documents,
    Encoded,
    Integers,
    JoinedDocuments,
    Part,
    ShufflesWithin,
    TokenIds,
    Values,
)
from hekaton.data.answers import documents_of, indices_at, parts_of
from hekaton.data.encoders import IDS_PART, IdsEncoder, UnknownIdError, encoded
from hekaton.data.joining import joined
from hekaton.data.order import mixed_number
from hekaton.data.pieces import PIECE
from hekaton.errors import DataError

MOST_DOCUMENTS = 64
"""A row asks for no more texts at once."""
JOINED_TOKENS = 2**15
"""About how many tokens of a row are read at once where documents are token ids already."""
_PLACES, _PLACES_OF_ROW = 2**15, 2**12
"""Places of an order that are looked up at once, for all rows together and for one: many cost little more
than one, but a run may never come to them."""
_LOCATED = 2**10
"""Documents of a row that are located at once: where they lie is read from an index on a disk."""
_CHANCE = 64
"""Times all documents that a row may find empty: in a shuffled order it does so with a chance of e^-64."""
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Source:
    """A dataset as the rows of a run read it.

    :param epochs: after how many a row has read its documents to the end; ``None`` for never.
    :param seed: of what is shuffled within documents.
    :param most: documents that are read, of the first of the order; ``None`` for all.
    """

    documents: Documents
    encoder: DocumentEncoder
    order: DocumentOrder
    epochs: int | None = None
    name: str = ""
    seed: int = 0
    most: int | None = None

    @property
    def places(self) -> int | None:
        """How many places of its order are read by all rows together; ``None`` for all."""
        places = None if self.epochs is None else self.epochs * len(self.documents)
        return self.most if places is None or (self.most is not None and self.most < places) else places

    def has_ended(self, feed: Feed) -> bool:
        """Whether a row has read all documents that it ever will."""
        return self.places is not None and feed.cursor[0] * feed.rows + feed.row >= self.places


@dataclass(slots=True)
class Span:
    """Tokens that follow one another in one document of a row, or in several for a row maker that takes them.

    :param document: the number of the (first) document in the row.
    :param offset: of the first token in the document.
    :param ids: (n,) or, of other things than tokens, (n, ...), as the encoder gave them.
    :param targets: (n,), which of them are to be predicted; ``None`` for all.
    :param starts: where in ``ids`` each further document begins, none of which is empty.
    :param breaks: where in ``ids`` a text begins within a document, as in :class:`Encoded`.
    """

    document: int
    offset: int
    ids: Values
    targets: npt.NDArray[np.bool_] | None = None
    starts: Integers = field(default_factory=lambda: _NONE)
    breaks: Integers = field(default_factory=lambda: _NONE)

    @property
    def begins_anew(self) -> bool:
        """Whether its first token begins a text within a document."""
        return bool(len(self.breaks)) and self.breaks[0] == 0

    @property
    def last_document(self) -> int:
        return self.document + len(self.starts)

    def cut(self, count: int) -> tuple[Span, Span]:
        """The first ``count`` tokens, and the others."""
        targets = (None, None) if self.targets is None else (self.targets[:count], self.targets[count:])
        document, offset, starts = self.document, self.offset + count, self.starts
        before = after = starts
        if len(starts):
            passed = int(starts.searchsorted(count, side="right"))
            if passed:
                document, offset = document + passed, count - int(starts[passed - 1])
            before, after = starts[: passed - (offset == 0)], starts[passed:] - count
        breaks, later = self.breaks, self.breaks
        if len(breaks):
            breaks, later = breaks[breaks < count], breaks[breaks >= count] - count
        return (
            Span(self.document, self.offset, self.ids[:count], targets[0], before, breaks),
            Span(document, offset, self.ids[count:], targets[1], after, later),
        )


class Feed:
    """The tokens ahead of one row in one source, which a row maker takes."""

    def __init__(self, row: int, cursor: Sequence[int], *, rows: int = 1) -> None:
        """:param cursor: documents read to the end, tokens read of the next, and a number of the row maker's
        own where it keeps one.
        :param rows: of the global batch."""
        self.row, self.rows = row, rows
        self.next_document, self._skip, *rest = cursor
        """The next document to fetch, and how many tokens of it were handed out before the row was sought."""
        self.made = rest[0] if rest else 0
        """The row maker's own number, which is kept in the cursor where it has one."""
        self.kept: Any = None
        """What the row maker would have to compute again; no part of the cursor."""
        self.unread: deque[tuple[int, Iterator[Part]]] = deque()
        self.spans: deque[Span] = deque()
        """The tokens ahead, in their order."""
        self.available = 0
        """How many tokens are ahead."""
        self.empty_documents = 0
        """Documents without a token since the last one that had some."""
        self.skipped = 0
        """Documents without a token since the last row."""
        self.indices = self.located = _NONE
        """Of the next documents, as far as they were looked up, and of the first of them where they lie."""
        self._encoded = 0
        self._begun: int | None = None
        """The document of which some parts are read, and others are not."""

    @property
    def cursor(self) -> tuple[int, int, int]:
        """Documents read to the end, tokens read of the next, and ``made``."""
        if self.spans:
            return self.spans[0].document, self.spans[0].offset, self.made
        if self.unread:
            document = self.unread[0][0]
            return document, self._encoded if document == self._begun else 0, self.made
        return self.next_document, self._skip, self.made

    def take(self, count: int) -> list[Span]:
        """Up to ``count`` tokens, which the row leaves behind."""
        taken = []
        while count and self.spans:
            span = self.spans.popleft()
            if len(span.ids) > count:
                span, rest = span.cut(count)
                self.spans.appendleft(rest)
            count -= len(span.ids)
            self.available -= len(span.ids)
            taken.append(span)
        return taken

    def leave(self, document: int) -> None:
        """Leave what is ahead of a document behind, read or not."""
        while self.spans and self.spans[0].document == document:
            self.available -= len(self.spans.popleft().ids)
        if self.unread and self.unread[0][0] == document:
            self.unread.popleft()

    def leave_all(self) -> None:
        """Leave what is ahead behind, where it is the last and no row can be made of it."""
        self.spans.clear()
        self.unread.clear()
        self.available = self.made = 0
        self.kept = None

    def advance(self, count: int) -> None:
        """Count documents as read, or about to be."""
        self.next_document += count
        self.indices, self.located = self.indices[count:], self.located[count:]

    def parts(self) -> Iterator[tuple[int, Part]]:
        """Take parts off the documents, at least one where there are any, until they amount to ``PIECE``."""
        size = 0
        while self.unread and size < PIECE:
            document, parts = self.unread[0]
            part = next(parts)
            size += part.size
            self._begun = document
            if part.is_last:
                self._begun = None
                self.unread.popleft()
            yield document, part

    def append(self, document: int, part: Part, encoded: Encoded) -> None:
        """Add a part's tokens. A document that has none is skipped."""
        ids, targets = encoded.ids, encoded.targets
        breaks = _NONE if encoded.breaks is None else encoded.breaks
        if part.is_first and part.is_last and not len(ids):
            self.empty_documents += 1
            self.skipped += 1
            return
        self.empty_documents = 0
        offset = 0 if part.is_first else self._encoded
        self._encoded = offset + len(ids)
        if self._skip:
            dropped = min(self._skip, len(ids))
            self._skip -= dropped
            offset, ids = offset + dropped, ids[dropped:]
            targets = None if targets is None else targets[dropped:]
            breaks = breaks[breaks >= dropped] - dropped
            if part.is_last and not len(ids):
                raise self._beyond(document)
        if len(ids):
            self.spans.append(Span(document, offset, ids, targets, breaks=breaks))
            self.available += len(ids)

    def append_joined(self, document: int, ids: TokenIds, ends: Integers) -> None:
        """Add whole documents that follow one another, none of them empty.

        :param document: the first.
        :param ends: where each ends in ``ids``.
        """
        self.empty_documents = 0
        skip, self._skip = self._skip, 0
        if skip >= ends[0]:
            raise self._beyond(document)
        self.spans.append(Span(document, skip, ids[skip:], None, ends[:-1] - skip))
        self.available += len(ids) - skip

    def _beyond(self, document: int) -> DataError:
        return DataError(
            f"row {self.row} of the global batch: its cursor lies beyond the end of its document {document}",
            hint="the documents changed since the checkpoint was written; to start them over, set "
            'checkpoint.exclude_from_loading = ["data_loader"]',
        )


class SourceReader:
    """Fetches and encodes the documents of one source for the feeds of many rows together."""

    def __init__(self, source: Source, *, rows: int, joined: bool = False, unit: str = "tokens") -> None:
        """:param rows: of the global batch.
        :param unit: what the row maker counts.
        :param joined: whether the row maker takes spans of several documents.
        """
        self._source = source
        self._rows, self._unit = rows, unit
        self._count = len(source.documents)
        self._last = source.places
        self._takes_joined = joined
        self._shuffles = isinstance(source.documents, ShufflesWithin)
        self._tokens_per_document = float("inf")  # ask for one until we know
        self._any_tokens = False
        self._joined: JoinedDocuments | None = None
        # An encoder that is not exactly ours may do more than look at ids.
        if joined and type(source.encoder) is IdsEncoder and isinstance(source.documents, JoinedDocuments):
            self._joined, self._ids = source.documents, source.encoder

    def fill(self, feeds: Sequence[Feed], tokens: int) -> None:
        """Read on until every feed has ``tokens`` tokens ahead, or nothing is left to read.

        All feeds that are short fetch together and encode together, which is what tokenizers are fast at.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        while short := [feed for feed in feeds if feed.available < tokens]:
            if self._joined is not None:
                self._join(self._joined, short, tokens)
                short = [feed for feed in short if feed.available < tokens]
            self._fetch([(feed, tokens - feed.available) for feed in short if not feed.unread])
            parts = [(feed, document, part) for feed in short for document, part in feed.parts()]
            if not parts:
                break
            read = encoded(
                self._source.encoder,
                [part for *_, part in parts],
                self._source.documents,
                lambda which, parts=parts: self._index_of(*parts[which][:2]),  # type: ignore[misc]
            )
            if not self._takes_joined and any(one.breaks is not None for one in read):
                raise DataError(
                    "the row maker takes documents of one text each, and those of the dataset have many",
                    hint='set training.packing = "documents" or "concat"',
                )
            for (feed, document, part), one in zip(parts, read, strict=True):
                feed.append(document, part, one)
                if feed.empty_documents and feed.empty_documents % self._count == 0:
                    self._check_any_tokens(feed)
            begun = sum(part.is_first for *_, part in parts)
            if begun:
                tokens_read = sum(len(one.ids) for one in read)
                self._tokens_per_document = max(1.0, tokens_read / begun)
        if any(feed.available for feed in feeds):
            self._any_tokens = True
        else:
            self._check_any_tokens()

    def _join(self, documents: JoinedDocuments, feeds: Sequence[Feed], tokens: int) -> None:
        """Give each feed whole documents at once: up to one that is empty or long, which is read alone."""
        for feed in feeds:
            while not feed.unread and feed.available < tokens:
                self._look_up(feeds, feed)
                if not len(feed.located):
                    feed.located = documents.locate(feed.indices[:_LOCATED])
                located = feed.located
                lengths = located[:, 2] - located[:, 1]
                ends = lengths.cumsum()
                most = int(ends.searchsorted(max(JOINED_TOKENS, tokens - feed.available), side="right")) + 1
                alone = np.flatnonzero((lengths[:most] == 0) | (lengths[:most] > IDS_PART))
                count = int(alone[0]) if len(alone) else min(most, len(lengths))
                if not count:
                    break
                ids = joined(documents, located[:count])
                try:
                    self._ids.check(ids)
                except UnknownIdError as e:
                    which = int(ends.searchsorted(e.at, side="right"))
                    token = e.at - int(ends[which] - lengths[which])
                    e.name_place(self._source.documents, int(feed.indices[which]), token)
                    raise
                feed.append_joined(feed.next_document, ids, ends[:count])
                feed.advance(count)

    def _index_of(self, feed: Feed, document: int) -> int:
        place = np.array([document * self._rows + feed.row])
        return int(indices_at(self._source.order, place, documents=self._count)[0])

    def _fetch(self, wanted: Sequence[tuple[Feed, int]]) -> None:
        """Fetch about as many documents as give each feed the tokens that it wants, at least one."""
        source = self._source
        feeds = [feed for feed, _ in wanted]
        asked: list[tuple[Feed, int]] = []
        indices: list[int] = []
        for feed, tokens in wanted:
            self._look_up(feeds, feed)
            number = 1 if self._joined else min(MOST_DOCUMENTS, int(tokens / self._tokens_per_document) + 1)
            found = feed.indices[:number].tolist()
            asked += [(feed, feed.next_document + at) for at in range(len(found))]
            indices += found
            feed.advance(len(found))
        if not asked:
            return
        documents = self._fetched(indices, [number * self._rows + feed.row for feed, number in asked])
        for (feed, number), document in zip(asked, documents, strict=True):
            feed.unread.append((number, parts_of(source.encoder, document)))

    def _fetched(self, indices: Sequence[int], places: Sequence[int]) -> list[Any]:
        """Documents, which stand at these places of the order."""
        documents = self._source.documents
        if not self._shuffles:
            return documents_of(documents, documents.fetch(indices), number=len(indices))
        seed = mixed_number(self._source.seed & 2**64 - 1)
        keys = [mixed_number(seed ^ place // self._count) for place in places]
        fetched = documents.fetch_shuffled(indices, keys)  # type: ignore[attr-defined]
        return documents_of(documents, fetched, number=len(indices))

    def _look_up(self, feeds: Sequence[Feed], wanted: Feed) -> None:
        """Look up which documents come next, where ``wanted`` knows of none, for all that know of few."""
        if len(wanted.indices):
            return
        count = max(1, min(_PLACES // len(feeds), _PLACES_OF_ROW))
        poor = [feed for feed in feeds if len(feed.indices) <= count // 2]
        first = np.array([feed.next_document + len(feed.indices) for feed in poor])
        rows = np.array([feed.row for feed in poor])
        places = (first[:, None] + np.arange(count)) * self._rows + rows[:, None]
        kept = places < self._last if self._last is not None else np.ones(places.shape, np.bool_)
        indices = indices_at(self._source.order, places[kept], documents=self._count)
        ends = np.cumsum(kept.sum(axis=1))[:-1]
        for feed, its in zip(poor, np.split(indices, ends), strict=True):
            feed.indices = np.concatenate([feed.indices, its]) if len(feed.indices) else its

    def _check_any_tokens(self, feed: Feed | None = None) -> None:
        """Tell a row that met only empty documents by chance from a dataset or a row that has no others."""
        if feed is not None and feed.empty_documents >= _CHANCE * self._count:
            hint = 'set training.order = "shuffled", or take the empty documents out'
            raise DataError(f"all documents of row {feed.row} of the global batch are empty", hint=hint)
        if not self._any_tokens:
            encoder, documents = self._source.encoder, self._source.documents
            for index in range(self._count):
                parts = [next(parts_of(encoder, documents.fetch([index])[0]))]
                if len(encoded(encoder, parts, documents, [index].__getitem__)[0].ids):
                    self._any_tokens = True
                    return
            raise DataError(f"the dataset is empty: none of its {self._count:,} documents has {self._unit}")
