"""Readers of file formats: each goes through a file once, block by block, and reports its rows.

Only the text is looked at. What else a row has may be of any type, and of another one in the next row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hekaton_hf.decoding import DocumentColumns

Places = npt.NDArray[np.int64]


class Rows(Protocol):
    """What a reader tells of the rows that it meets, in their order. ``where`` is as in "line 3"."""

    def text(self, text: str, start: int, length: int) -> None:
        """A document, and the bytes of the content that it was parsed from."""

    def spans(self, content: bytes, start: int, places: Places, lengths: Places) -> None:
        """Documents that are parts of a block of the content, which begins at ``start``."""

    def part(self, content: bytes) -> None:
        """The next part of a document that may be longer than the memory."""

    def end(self, start: int, length: int) -> None:
        """The end of the parts, which began at ``start`` of the content."""

    def replaced(self, where: str) -> None:
        """Something of this row's text was replaced."""

    def bad(self, where: str, reason: str) -> None:
        """This row should have a document, and has none."""

    def keys(self, names: Iterable[str], has_text: bool) -> None:
        """The names of what a row has, and whether the text's is among them."""

    def recoded(self) -> None:
        """Places in the content are none in the file."""


def keep_document(row: dict[str, Any], reader: DocumentColumns, rows: Rows, *, where: str) -> None:
    """Tell of the document of a row, which has no place of its own in the file."""
    try:
        text, replaced = reader.document(row)
    except ValueError as error:
        rows.bad(where, str(error))
        return
    rows.text(text, 0, 0)
    if replaced:
        rows.replaced(where)


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same content in blocks that end where a line ends."""
    parts: list[bytes] = []
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, block[:end]])
            parts = []
        parts.append(block[end:])
    last = b"".join(parts)
    if last:
        yield last
