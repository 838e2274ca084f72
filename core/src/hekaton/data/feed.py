"""The documents of one row, encoded as they are needed, and where the row is in them.

Row i of B reads the documents at places i, B + i, 2B + i, ... of a source's order. A row is where it is by
two numbers alone: how many documents it has read to the end, and how many tokens of the next. So what a row
reads does not depend on who reads it, nor on which rows are read together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hekaton.data import DocumentEncoder, DocumentOrder, Documents, Encoded, Part, TokenIds
from hekaton.data.pieces import PIECE
from hekaton.errors import DataError

MOST_DOCUMENTS = 64
"""A row asks for no more documents at once."""


@dataclass(frozen=True)
class Source:
    """A dataset as the rows of a run read it.

    :param epochs: after how many a row has read its documents to the end; ``None`` for never.
    """

    documents: Documents
    encoder: DocumentEncoder
    order: DocumentOrder
    epochs: int | None = None
    name: str = ""


@dataclass(slots=True)
class Span:
    """Tokens that follow one another in one document of a row.

    :param document: its number in the row.
    :param offset: of the first token in the document.
    """

    document: int
    offset: int
    ids: TokenIds
    targets: npt.NDArray[np.bool_] | None = None

    def cut(self, count: int) -> tuple[Span, Span]:
        """The first ``count`` tokens, and the others."""
        targets = (None, None) if self.targets is None else (self.targets[:count], self.targets[count:])
        return (
            Span(self.document, self.offset, self.ids[:count], targets[0]),
            Span(self.document, self.offset + count, self.ids[count:], targets[1]),
        )


class Feed:
    """The tokens ahead of one row in one source, which a row maker takes."""

    def __init__(self, row: int, cursor: Sequence[int]) -> None:
        """:param cursor: documents read to the end, tokens read of the next, and a number of the row maker's
        own where it keeps one."""
        self.row = row
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
            if part.is_last and not len(ids):
                raise DataError(
                    f"row {self.row} of the global batch: its cursor lies beyond the end of its document "
                    f"{document}",
                    hint="the documents changed since the checkpoint was written; to start them over, set "
                    'checkpoint.exclude_from_loading = ["data_loader"]',
                )
        if len(ids):
            self.spans.append(Span(document, offset, ids, targets))
            self.available += len(ids)


class SourceReader:
    """Fetches and encodes the documents of one source for the feeds of many rows together."""

    def __init__(self, source: Source, *, rows: int) -> None:
        """:param rows: of the global batch."""
        self._source = source
        self._rows = rows
        self._count = len(source.documents)
        self._places = None if source.epochs is None else source.epochs * self._count
        self._tokens_per_document = float("inf")  # ask for one until we know
        self._any_tokens = False

    def fill(self, feeds: Sequence[Feed], tokens: int) -> None:
        """Read on until every feed has ``tokens`` tokens ahead, or nothing is left to read.

        All feeds that are short fetch together and encode together, which is what tokenizers are fast at.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        encoder = self._source.encoder
        while short := [feed for feed in feeds if feed.available < tokens]:
            self._fetch([(feed, tokens - feed.available) for feed in short if not feed.unread])
            parts = [(feed, document, part) for feed in short for document, part in feed.parts()]
            if not parts:
                break
            encoded = encoder.encode([part for *_, part in parts])
            for (feed, document, part), one in zip(parts, encoded, strict=True):
                feed.append(document, part, one)
                if feed.empty_documents >= self._count:
                    self._check_any_tokens()
                    feed.empty_documents = 0
            begun = sum(part.is_first for *_, part in parts)
            if begun:
                read = sum(len(one.ids) for one in encoded)
                self._tokens_per_document = max(1.0, read / begun)
        if any(feed.available for feed in feeds):
            self._any_tokens = True
        else:
            self._check_any_tokens()

    def _fetch(self, wanted: Sequence[tuple[Feed, int]]) -> None:
        """Fetch about as many documents as give each feed the tokens that it wants, at least one."""
        source = self._source
        asked = []
        for feed, tokens in wanted:
            number = min(MOST_DOCUMENTS, int(tokens / self._tokens_per_document) + 1)
            for _ in range(number):
                place = feed.next_document * self._rows + feed.row
                if self._places is not None and place >= self._places:
                    break
                asked.append((feed, feed.next_document, place))
                feed.next_document += 1
        if not asked:
            return
        places = np.array([place for *_, place in asked], np.int64)
        documents = source.documents.fetch(source.order.at(places).tolist())
        for (feed, number, _), document in zip(asked, documents, strict=True):
            feed.unread.append((number, iter(source.encoder.cut(document))))

    def _check_any_tokens(self) -> None:
        """Tell a row that met only empty documents by chance from a dataset that has no others."""
        if not self._any_tokens:
            encoder = self._source.encoder
            for index in range(self._count):
                (document,) = self._source.documents.fetch([index])
                (encoded,) = encoder.encode([next(iter(encoder.cut(document)))])
                if len(encoded.ids):
                    self._any_tokens = True
                    return
            what = f"source '{self._source.name}'" if self._source.name else "the dataset"
            raise DataError(f"{what} is empty: none of its {self._count:,} documents has a token")
