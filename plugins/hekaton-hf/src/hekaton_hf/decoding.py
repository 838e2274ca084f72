"""From bytes to text: one policy for every format.

Text is UTF-8; a file that begins with the byte order mark of UTF-16 or UTF-32 is in that. What no text should
hold (bytes that are not UTF-8, null characters, halves of surrogate pairs) becomes U+FFFD, and the rows with
such are counted. A file that is mostly such is not text, and refused.
"""

from __future__ import annotations

import codecs
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

BLOCK = 1 << 20
"""Bytes that are read at once."""
MARKED = "hekaton_hf_marked"
"""Name for decoders' ``errors``: what is wrong becomes half of a surrogate pair, which no text has."""
_PROBED = 1 << 16
_MOST_ODD = 32
_MOST_ODD_SHARE = 0.1
_REPLACEMENT = "\ufffd"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_MARKS = (  # the longer ones first: a mark of UTF-32 begins with one of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
JSON_DECODER = json.JSONDecoder(parse_int=float, strict=False)
"""Integers as floats: Python refuses those of thousands of digits, and only the text is wanted."""


class UnreadableError(Exception):
    """A file cannot be read to its end; says why and what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def decode(raw: bytes | bytearray) -> tuple[str, bool]:
    """The text of UTF-8, and whether anything in it was replaced."""
    try:
        text, replaced = raw.decode(), False
    except UnicodeDecodeError:
        text, replaced = raw.decode("utf-8", "replace"), True
    if "\0" in text:
        text, replaced = text.replace("\0", _REPLACEMENT), True
    return text, replaced


def clean(text: str) -> tuple[str, bool]:
    """A text without null characters and halves of surrogate pairs, and whether anything was replaced."""
    if "\0" not in text:
        if text.isascii():
            return text, False
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text, False
    return _NO_TEXT.sub(_REPLACEMENT, text), True


def parse_object(raw: bytes | bytearray, decoder: json.JSONDecoder = JSON_DECODER) -> dict[str, Any]:
    """A JSON object in UTF-8. Bytes that are not UTF-8 are given as halves of surrogates.

    :raises ValueError: saying what is wrong.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("utf-8", MARKED)
    row = parse_json(text.removeprefix("\ufeff"), decoder)
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object was expected, not {kind_of(row)}")
    return row


class DocumentColumns(Protocol):
    """What of a row is its document."""

    @property
    def decoder(self) -> json.JSONDecoder:
        """Of rows of JSON."""

    def columns(self, names: Sequence[str]) -> list[str]:
        """Those of a row's columns that it looks at; none where the document cannot be among them."""

    def document(self, row: dict[str, Any]) -> tuple[str, bool]:
        """The text to be kept of a row, empty where there is no document, and whether anything in it was
        replaced.

        :raises ValueError: saying what is wrong.
        """


@dataclass(frozen=True)
class TextColumn:
    """The text in one column. Integers are read as floats."""

    column: str
    decoder = JSON_DECODER

    def columns(self, names: Sequence[str]) -> list[str]:
        return [self.column] if self.column in names else []

    def document(self, row: dict[str, Any]) -> tuple[str, bool]:
        return text_in(row, self.column)


def text_in(row: dict[str, Any], key: str) -> tuple[str, bool]:
    """The text under ``key`` of an object, and whether anything in it was replaced. None is the empty text.

    :raises ValueError: when it is something else than text.
    """
    value = row.get(key)
    if value is None:
        return "", False
    if not isinstance(value, str):
        raise ValueError(f"'{key}' is not text but {kind_of(value)}")
    return clean(value)


def parse_json(text: str, decoder: json.JSONDecoder = JSON_DECODER) -> Any:
    """:raises ValueError: when it is not JSON, or too deep."""
    try:
        return decoder.decode(text)
    except RecursionError:
        return _parsed_in_a_thread(text, decoder)
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON: {e.msg} at character {e.pos + 1}") from e


def _parsed_in_a_thread(text: str, decoder: json.JSONDecoder) -> Any:
    """Parse in a thread of its own: how deep JSON may be then does not depend on how deep the caller is."""
    found: list[Any] = []

    def parse() -> None:
        try:
            found.append(decoder.decode(text))
        except (RecursionError, ValueError):
            found.clear()

    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
    if not found:
        raise ValueError("not JSON that can be read: it is nested too deeply")
    return found[0]


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", float: "a number"}
    return names.get(type(value), "null")


class TextBlocks:
    """The content of a file in UTF-8, block by block, without a byte order mark.

    :ivar skipped: bytes of the byte order mark.
    :ivar is_recoded: whether the file is in another encoding: places in the blocks are none in the file.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        """:raises UnreadableError: when the content is not text."""
        self.skipped = 0
        self.is_recoded = False
        first = b""
        for block in blocks:
            first += block
            if len(first) >= _PROBED:
                break
        for mark, encoding in _MARKS:
            if first.startswith(mark):
                self.is_recoded = True
                self._blocks = _recoded(_chained(first[len(mark) :], blocks), encoding)
                return
        if first.startswith(codecs.BOM_UTF8):
            self.skipped = len(codecs.BOM_UTF8)
            first = first[self.skipped :]
        _check_text(first[:_PROBED])
        self._blocks = _chained(first, blocks)

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _check_text(probe: bytes) -> None:
    nulls = probe.count(0)
    if nulls > max(_MOST_ODD, _MOST_ODD_SHARE * len(probe)):
        raise UnreadableError(
            "it is full of null bytes: not text, or UTF-16 without a byte order mark",
            hint="recode it: iconv -f UTF-16LE -t UTF-8",
        )
    text = probe.decode("utf-8", "replace")
    replaced = text.count(_REPLACEMENT) - probe.count(_REPLACEMENT.encode())
    if replaced > max(_MOST_ODD, _MOST_ODD_SHARE * len(text)):
        raise UnreadableError(
            f"it is not UTF-8: {replaced:,} of its first {len(text):,} characters are not",
            hint="recode it, for example: iconv -f GB18030 -t UTF-8",
        )


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ud800", error.end


codecs.register_error(MARKED, _marked)


def _recoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Another encoding in UTF-8. What is wrong in it becomes wrong UTF-8, which is counted."""
    decoder = codecs.getincrementaldecoder(encoding)(MARKED)
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
