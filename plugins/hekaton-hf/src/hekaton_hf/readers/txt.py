"""Documents of plain text."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator

import numpy as np

from hekaton_hf.decoding import TextBlocks, UnreadableError, decode
from hekaton_hf.readers import MOST_OF_TEXT, Rows, whole_lines


def read_txt(blocks: TextBlocks, rows: Rows, *, documents: str) -> None:
    """Documents are the whole file, lines, or paragraphs, which empty lines end. Line ends are ``\\n`` and
    ``\\r\\n``, and belong to no line or paragraph.

    :raises UnreadableError: at a document that is too long.
    """
    if documents == "file":
        _read_whole(blocks, rows)
        return
    start, line = blocks.skipped, 1
    blocks_of = whole_lines if documents == "line" else whole_paragraphs
    for block in blocks_of(iter(blocks)):
        values = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(values == ord("\n"))
        if not block.endswith(b"\n"):
            ends = np.append(ends, len(block))
        places = np.append(0, ends[:-1] + 1)
        lengths = ends - places
        lengths -= (lengths > 0) & (values[ends - 1] == ord("\r"))
        numbers = np.arange(line, line + len(places))
        line += len(places)
        if documents == "paragraph":
            is_full = lengths > 0
            before, after = np.append(False, is_full[:-1]), np.append(is_full[1:], False)
            firsts, lasts = np.flatnonzero(is_full & ~before), np.flatnonzero(is_full & ~after)
            lengths = places[lasts] + lengths[lasts] - places[firsts]
            places, numbers = places[firsts], numbers[firsts]
        rows.spans(block, start, places, lengths)
        start += len(block)
        if not _is_clean(block):
            for number, place, length in zip(numbers, places, lengths, strict=True):
                if decode(block[place : place + length])[1]:
                    rows.replaced(f"line {number}")


def _read_whole(blocks: TextBlocks, rows: Rows) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    length, line, is_clean = 0, 1, True
    for block in itertools.chain(blocks, [b""]):
        rows.part(block)
        length += len(block)
        check_length(length, "file")
        if is_clean:
            try:
                bad = block.find(0)
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as e:
                bad = e.start
            if bad >= 0:
                is_clean = False
                rows.replaced(f"line {line + block.count(10, 0, bad)}")
        line += block.count(10)
    if length:
        rows.end(blocks.skipped, length)


def check_length(length: int, document: str) -> None:
    """:param document: what documents are.
    :raises UnreadableError: for one that is too long.
    """
    if length > MOST_OF_TEXT:
        hint = '"line" or "paragraph"' if document == "file" else '"line"'
        raise UnreadableError(
            f"it has a document of more than {MOST_OF_TEXT:,} bytes, since a {document} is one",
            hint=f"split it, or set text_dataset.txt_documents = {hint}",
        )


def _is_clean(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return 0 not in content


def whole_paragraphs(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same content in blocks that end where an empty line ends."""
    parts: list[bytes] = []
    length = 0
    for block in whole_lines(blocks):
        end = max(
            (block.rfind(mark) + len(mark) for mark in (b"\n\n", b"\n\r\n") if mark in block), default=0
        )
        if not end:  # the line before this block has its end there
            end = next((len(mark) for mark in (b"\n", b"\r\n") if block.startswith(mark)), 0)
        if end:
            yield b"".join([*parts, block[:end]])
            parts, length = [], 0
        parts.append(block[end:])
        length += len(block) - end
        check_length(length, "paragraph")
    last = b"".join(parts)
    if last:
        yield last
