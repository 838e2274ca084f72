"""Readers of file formats: each goes through a file once, block by block, and reports its rows.

Only the text is looked at. What else a row has may be of any type, and of another one in the next row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hekaton_hf.decoding import DocumentColumns, UnreadableError

Places = npt.NDArray[np.int64]
MOST_OF_LINE = 1 << 28
"""Bytes of a row of JSON: reading it takes some five times as many."""
MOST_OF_TEXT = 1 << 31
"""Bytes of a document of a ``.txt`` file; several times as many are held when it is read."""
MOST_OF_JSON = 1 << 31
"""Bytes of a line of a ``.json`` file, which may have all of its rows in one."""


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


def whole_lines(blocks: Iterator[bytes], *, most: int = MOST_OF_LINE) -> Iterator[bytes]:
    """The same content in blocks that end where a line ends.

    :param most: bytes of a line.
    :raises UnreadableError: at one that is longer, as a small compressed file may have.
    """
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, block[:end]])
            parts, size = [], 0
        parts.append(block[end:])
        size += len(block) - end
        if size > most:
            raise UnreadableError(f"it has a line of more than {most:,} bytes")
    last = b"".join(parts)
    if last:
        yield last
