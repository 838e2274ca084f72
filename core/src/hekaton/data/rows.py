"""Rows of the global batch: each one reads its own documents and cuts them into sequences.

Row i of B reads the documents at places i, B + i, 2B + i, ... of the endless sequence of epochs (see
:mod:`hekaton.data.order`). A row is where it is by two numbers alone, its cursor: how many documents it has
read to the end, and how many tokens of the next. So what a row reads does not depend on who reads it, nor on
which rows are read together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hekaton.data import Documents, TextTokenizer, TokenIds
from hekaton.data.order import document_at
from hekaton.data.pieces import PIECE, Piece, UnreadText, encode_pieces
from hekaton.errors import DataError
from hekaton.loss import IGNORE_INDEX

Packing: TypeAlias = Literal["documents", "concat"]
Integers: TypeAlias = npt.NDArray[np.int64]

MOST_DOCUMENTS = 64
"""A row asks for no more documents at once."""


@dataclass(frozen=True)
class Stream:
    """What all rows have in common.

    :param rows: number of rows of the global batch.
    :param repeat: read epoch after epoch; otherwise stop at the end of the first.
    """

    documents: Documents
    tokenizer: TextTokenizer
    seq_len: int
    rows: int
    seed: int
    packing: Packing
    repeat: bool

    @property
    def unit(self) -> str:
        """What the work of a run is counted in: speed and floating-point operations are per unit."""
        return "tokens"

    @property
    def units_per_row(self) -> int:
        return self.seq_len


@dataclass(frozen=True)
class Sequences:
    """One sequence of each row that a reader has.

    :param tensors: ``tokens``, ``labels`` and, with documents kept apart, ``positions``; (rows, seq_len).
    :param cursor: (rows, 2), where the rows are after these sequences.
    :param left: whether any row had something left; otherwise all is padding.
    """

    tensors: dict[str, Integers]
    cursor: Integers
    left: bool


class RowReader:
    """Reads some rows of a stream from their cursors on, one sequence of each at a time."""

    def __init__(self, stream: Stream, rows: Sequence[int], cursor: Integers) -> None:
        """:param cursor: (rows, 2): documents read to the end, and tokens read of the next."""
        self._stream = stream
        self._count = len(stream.documents)
        self._rows = [_Row(row, place) for row, place in zip(rows, cursor.tolist(), strict=True)]
        self._tokens_per_document = float("inf")  # ask for one until we know
        self._any_tokens = False

    def next(self) -> Sequences:
        """The next sequence of each row.

        :raises DataError: when no document has a token, or documents cannot be read.
        """
        stream = self._stream
        self._fill(stream.seq_len + 1)
        shape = (len(self._rows), stream.seq_len)
        tensors = {"tokens": np.zeros(shape, np.int64), "labels": np.full(shape, IGNORE_INDEX, np.int64)}
        if stream.packing == "documents":
            tensors["positions"] = np.empty(shape, np.int64)
        left = False
        for index, row in enumerate(self._rows):
            spans: list[_Span] = []
            if row.available > 1:  # a last token alone predicts nothing
                left = self._any_tokens = True
                spans = list(row.take(stream.seq_len))
            _lay_out(spans, row.ahead, {name: values[index] for name, values in tensors.items()})
        if not (left or self._any_tokens):
            self._check_any_tokens()
        return Sequences(tensors, np.array([row.cursor for row in self._rows], np.int64), left)

    def _fill(self, tokens: int) -> None:
        """Read on until every row has ``tokens`` tokens ahead, or nothing is left to read.

        All rows that are short fetch together and encode together, which is what tokenizers are fast at.
        """
        tokenizer = self._stream.tokenizer
        while short := [row for row in self._rows if row.available < tokens]:
            self._fetch([(row, tokens - row.available) for row in short if not row.texts])
            pieces = [(row, piece) for row in short for piece in row.pieces()]
            if not pieces:
                return
            encoded = encode_pieces(tokenizer, [piece for _, piece in pieces])
            for (row, piece), ids in zip(pieces, encoded, strict=True):
                row.append(piece, ids, tokenizer)
                if row.empty_documents >= self._count:
                    self._check_any_tokens()
                    row.empty_documents = 0
            begun = sum(piece.is_first for _, piece in pieces)
            if begun:
                self._tokens_per_document = max(1.0, sum(map(len, encoded)) / begun)

    def _fetch(self, wanted: Sequence[tuple[_Row, int]]) -> None:
        """Fetch about as many documents as give each row the tokens that it wants, at least one."""
        stream = self._stream
        asked = []
        for row, tokens in wanted:
            number = min(MOST_DOCUMENTS, int(tokens / self._tokens_per_document) + 1)
            for _ in range(number):
                place = row.next_document * stream.rows + row.row
                if not stream.repeat and place >= self._count:
                    break
                asked.append((row, row.next_document, place))
                row.next_document += 1
        if not asked:
            return
        places = np.array([place for *_, place in asked], np.int64)
        indices = document_at(places, documents=self._count, seed=stream.seed).tolist()
        texts = stream.documents.fetch(indices)
        for (row, document, _), text in zip(asked, texts, strict=True):
            row.texts.append(UnreadText(document, text))

    def _check_any_tokens(self) -> None:
        """Tell a row that met only empty documents by chance from a dataset that has no others."""
        if not self._any_tokens:
            stream = self._stream
            for index in range(self._count):
                (text,) = stream.documents.fetch([index])
                if len(stream.tokenizer.encode_batch([text[:PIECE]])[0]):
                    self._any_tokens = True
                    return
            raise DataError(f"the dataset is empty: none of its {self._count:,} documents has a token")


@dataclass
class _Span:
    """Tokens that follow one another in one document of a row."""

    document: int
    offset: int
    ids: TokenIds


class _Row:
    """The tokens ahead of one row, and where they are in its documents."""

    def __init__(self, row: int, cursor: Sequence[int]) -> None:
        self.row = row
        self.next_document, self._skip = cursor
        """The next document to fetch, and how many tokens of it were handed out before the row was sought."""
        self.texts: deque[UnreadText] = deque()
        self.spans: deque[_Span] = deque()
        self.available = 0
        self.empty_documents = 0
        """Documents without a token since the last one that had some."""
        self._encoded = 0

    @property
    def ahead(self) -> _Span | None:
        """The span that the next sequence begins with."""
        return self.spans[0] if self.spans else None

    @property
    def cursor(self) -> tuple[int, int]:
        """Only between sequences: a row then has tokens ahead, or has read nothing since it was sought, or is
        at its end."""
        if self.spans:
            return self.spans[0].document, self.spans[0].offset
        return self.next_document, self._skip

    def pieces(self) -> Iterator[Piece]:
        """Take pieces off the texts, at least one where there are any, until they amount to ``PIECE``."""
        characters = 0
        while self.texts and characters < PIECE:
            piece = self.texts[0].cut()
            characters += len(piece.text)
            if piece.is_last:
                self.texts.popleft()
            yield piece

    def append(self, piece: Piece, ids: TokenIds, tokenizer: TextTokenizer) -> None:
        """Add a piece's tokens. A document that has none is skipped, begin and end marks included."""
        if piece.is_first and piece.is_last and not len(ids):
            self.empty_documents += 1
            return
        self.empty_documents = 0
        before = [tokenizer.bos_id] if piece.is_first and tokenizer.bos_id is not None else []
        after = [tokenizer.eos_id] if piece.is_last and tokenizer.eos_id is not None else []
        if before or after:
            ids = np.concatenate([before, ids, after], dtype=np.int32, casting="unsafe")
        offset = 0 if piece.is_first else self._encoded
        self._encoded = offset + len(ids)
        if self._skip:
            dropped = min(self._skip, len(ids))
            self._skip -= dropped
            offset, ids = offset + dropped, ids[dropped:]
            if piece.is_last and not len(ids):
                raise DataError(
                    f"row {self.row} of the global batch: its cursor lies beyond the end of its document "
                    f"{piece.document}",
                    hint="the documents changed since the checkpoint was written; to start them over, set "
                    'checkpoint.exclude_from_loading = ["data_loader"]',
                )
        if len(ids):
            self.spans.append(_Span(piece.document, offset, ids))
            self.available += len(ids)

    def take(self, count: int) -> Iterator[_Span]:
        """Up to ``count`` tokens, which the row leaves behind."""
        while count and self.spans:
            span = self.spans.popleft()
            if len(span.ids) > count:
                self.spans.appendleft(_Span(span.document, span.offset + count, span.ids[count:]))
                span = _Span(span.document, span.offset, span.ids[:count])
            count -= len(span.ids)
            self.available -= len(span.ids)
            yield span


def _lay_out(spans: Sequence[_Span], ahead: _Span | None, out: dict[str, Integers]) -> None:
    """Write one sequence into ``out``, (seq_len,) each, padding what the spans leave.

    :param ahead: what follows in the row: its first token is the last label.
    """
    tokens, labels, positions = out["tokens"], out["labels"], out.get("positions")
    end = begin = 0
    for span, following in zip(spans, [*spans[1:], ahead], strict=False):
        start, end = end, end + len(span.ids)
        tokens[start:end] = span.ids
        labels[start : end - 1] = span.ids[1:]
        ends_document = following is None or following.document != span.document
        if following is not None and not (ends_document and positions is not None):
            labels[end - 1] = following.ids[0]
        if ends_document:
            if positions is not None:
                positions[begin:end] = np.arange(end - begin)
            begin = end
    if positions is not None:
        if begin < end:  # the document goes on in the next sequence
            positions[begin:end] = np.arange(end - begin)
        positions[end:] = np.arange(len(positions) - end)
