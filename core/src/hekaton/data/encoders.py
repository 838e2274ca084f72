"""The encoders of the core: texts by the tokenizer, and documents that are token ids already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hekaton.data import DocumentEncoder, Documents, Encoded, SaysPlaces, TextTokenizer, TokenIds
from hekaton.data.answers import encoded_parts
from hekaton.data.pieces import Piece, UnreadText, encode_pieces
from hekaton.errors import DataError

IDS_PART = 2**18
"""Most ids of a tokenised document that are taken at once."""


class TextEncoder:
    """``text``: the ids of a text between the tokenizer's begin and end marks, where it has them."""

    fingerprint = "text"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def cut(self, document: str) -> Iterator[Piece]:
        """:raises DataError: for a document that is no text."""
        if not isinstance(document, str):
            raise DataError(
                f"a document is of type {type(document).__name__}, and the encoder 'text' takes texts",
                hint="return str from the dataset's fetch(), or name another encoder in its record, "
                'Dataset(..., encoder="...")',
            )
        unread = UnreadText(document)
        while True:
            piece = unread.cut()
            yield piece
            if piece.is_last:
                return

    def encode(self, parts: Sequence[Piece]) -> list[Encoded]:
        encoded = encode_pieces(self._tokenizer, parts)
        return [Encoded(self._marked(piece, ids)) for piece, ids in zip(parts, encoded, strict=True)]

    def _marked(self, piece: Piece, ids: TokenIds) -> TokenIds:
        """A text that has no token gets no marks either."""
        if piece.is_first and piece.is_last and not len(ids):
            return ids
        bos, eos = self._tokenizer.bos_id, self._tokenizer.eos_id
        before = [bos] if piece.is_first and bos is not None else []
        after = [eos] if piece.is_last and eos is not None else []
        if before or after:
            ids = np.concatenate([before, ids, after], dtype=np.int32, casting="unsafe")
        return ids


@dataclass(frozen=True, slots=True)
class Ids:
    """Some ids of a document.

    :param start: of the first of them in the document.
    """

    ids: Any
    start: int
    is_last: bool

    @property
    def is_first(self) -> bool:
        return self.start == 0

    @property
    def size(self) -> int:
        return len(self.ids)


class UnknownIdError(DataError):
    """An id that the tokenizer does not have.

    :param at: its place in what was looked at.
    :param part: which of several parts that is.
    """

    def __init__(self, number: int, vocab_size: int, *, at: int) -> None:
        super().__init__(
            f"{number:,} is no id of the tokenizer, which has those below {vocab_size:,}",
            hint="the tokens were made with another tokenizer, or their dtype is another one",
        )
        self.at, self.part = at, 0

    def name_place(self, documents: Documents, index: int, token: int) -> None:
        """Begin the message with where the id is."""
        place = f"document {index:,}, token {token:,}"
        if isinstance(documents, SaysPlaces):
            place = documents.place_of(index, token)
        self.message = f"{place}: {self.message}"


class IdsEncoder:
    """``ids``: a document is its token ids, marks included."""

    fingerprint = "ids"

    def __init__(self, vocab_size: int = 2**31) -> None:
        """:param vocab_size: every id must be below it."""
        self.vocab_size = vocab_size

    def cut(self, document: Any) -> Iterator[Ids]:
        length = len(document)
        if length <= IDS_PART:
            yield Ids(document, 0, True)
            return
        for start in range(0, length, IDS_PART):
            end = start + IDS_PART
            yield Ids(document[start:end], start, end >= length)

    def encode(self, parts: Sequence[Ids]) -> list[Encoded]:
        """:raises UnknownIdError: for ids that the tokenizer does not have."""
        for number, part in enumerate(parts):
            try:
                self.check(part.ids)
            except UnknownIdError as e:
                e.part = number
                raise
        return [Encoded(part.ids) for part in parts]

    def check(self, ids: Any) -> None:
        """:raises UnknownIdError: for ids that the tokenizer does not have."""
        if not len(ids):
            return
        lowest = 0 if ids.dtype.kind == "u" else int(ids.min())
        if lowest < 0 or int(ids.max()) >= self.vocab_size:
            at = int(np.flatnonzero((ids < 0) | (ids >= self.vocab_size))[0])
            raise UnknownIdError(int(ids[at]), self.vocab_size, at=at)


def encoded(
    encoder: DocumentEncoder, parts: Sequence[Any], documents: Documents, index_of: Callable[[int], int]
) -> list[Encoded]:
    """The tokens of parts.

    :param index_of: the index of the document of a part, for an error that names it.
    :raises DataError: as the encoder.
    """
    try:
        found = encoder.encode(parts)
    except UnknownIdError as e:
        e.name_place(documents, index_of(e.part), parts[e.part].start + e.at)
        raise
    return encoded_parts(encoder, found, number=len(parts))


def text(section: Any, tokenizer: TextTokenizer) -> TextEncoder:
    return TextEncoder(tokenizer)


def ids(section: Any, tokenizer: TextTokenizer) -> IdsEncoder:
    return IdsEncoder(tokenizer.vocab_size)
