"""Long documents are encoded piece by piece, so that memory is bounded by a piece and not by a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hekaton.data import TextTokenizer, TokenIds
from hekaton.data.answers import ids_of

PIECE = 2**18
"""Longest text that is encoded at once, in characters. Tokenizers need hundreds of bytes per token while they
work: a piece costs tens of megabytes, a document of a gigabyte would cost a hundred gigabytes."""
CONTEXT = 256
"""Characters around a piece that a tokenizer is shown."""


@dataclass(frozen=True)
class Piece:
    """A part of a text. A text of no more than ``PIECE`` characters is one piece."""

    text: str
    is_first: bool
    is_last: bool
    before: str = ""
    """The end of what comes before it in the document, up to ``CONTEXT`` characters."""
    after: str = ""
    """The beginning of what comes after it."""

    @property
    def size(self) -> int:
        """In characters."""
        return len(self.text)


class UnreadText:
    """What is left of a document's text.

    Where a text is cut depends on the text alone, so its tokens are the same on every run and layout. A cut
    can split what the tokenizer would have joined: it is put behind the end of a line where there is one in
    the second half of the piece, else behind a space, else where the piece is full.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = 0

    def cut(self) -> Piece:
        """Take the next piece."""
        text, start = self._text, self._start
        end = min(start + PIECE, len(text))
        if end < len(text):
            middle = start + PIECE // 2
            found = text.rfind("\n", middle, end)
            if found == -1:
                found = text.rfind(" ", middle, end)
            if found != -1:
                end = found + 1
        self._start = end
        return Piece(
            text[start:end],
            is_first=start == 0,
            is_last=end == len(text),
            before=text[max(0, start - CONTEXT) : start],
            after=text[end : end + CONTEXT],
        )


def encode_pieces(tokenizer: TextTokenizer, pieces: Sequence[Piece]) -> list[TokenIds]:
    """Ids of each piece: whole documents together, which tokenizers are fast at, and parts of longer ones as
    parts, where the tokenizer can do that.

    :raises DataError: for what is no ids of the tokenizer.
    """
    # Compared with a protocol, each call would take as long as encoding some 20 tokens.
    encode_piece = getattr(tokenizer, "encode_piece", None)
    texts = [piece.text for piece in pieces if encode_piece is None or (piece.is_first and piece.is_last)]
    whole = ids_of(tokenizer, tokenizer.encode_batch(texts), number=len(texts))
    if encode_piece is None:
        return whole
    left = iter(whole)
    return [
        next(left)
        if piece.is_first and piece.is_last
        else ids_of(tokenizer, [encode_piece(piece.text, before=piece.before, after=piece.after)], number=1)[
            0
        ]
        for piece in pieces
    ]
