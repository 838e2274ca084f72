"""Rows of JSON: in lines, in a list, or one after another."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from hekaton_hf.decoding import JSON_DECODER, MARKED, DocumentColumns, UnreadableError, kind_of, parse_object
from hekaton_hf.readers import MOST_OF_JSON, MOST_OF_LINE, Rows, keep_document, whole_lines

_NO_SPACE = re.compile(r"[^ \t\r\n]")
_LONGEST_WORD = len("-Infinity") + len("\\uXXXX\\uXXXX")


def read_json_lines(blocks: Iterator[bytes], start: int, rows: Rows, reader: DocumentColumns) -> None:
    """A JSON object in each line; empty lines are none."""
    number = 0
    for block in blocks:
        for line in block.split(b"\n"):
            number += 1
            if line and not line.isspace():
                _read_object(line, number, start, rows, reader)
            start += len(line) + 1
        # What follows the last line end of a block is the beginning of the next line, and empty.
        number -= 1
        start -= 1


def _read_object(line: bytes, number: int, start: int, rows: Rows, reader: DocumentColumns) -> None:
    try:
        row = parse_object(line, reader.decoder)
        rows.keys(row, bool(reader.columns(list(row))))
        text, replaced = reader.document(row)
    except ValueError as e:
        rows.bad(f"line {number}", str(e))
        return
    rows.text(text, start, len(line))
    if replaced:
        rows.replaced(f"line {number}")


def read_json(blocks: Iterator[bytes], start: int, rows: Rows, reader: DocumentColumns) -> None:
    """A list of JSON objects, objects over any number of lines, or one in each line."""
    begin = next(blocks, b"")
    while begin.isspace() and (more := next(blocks, b"")):
        begin += more
    blocks = itertools.chain([begin], blocks)
    if begin.lstrip().startswith(b"{"):
        lines = whole_lines(blocks, most=MOST_OF_JSON)
        first = next(lines, b"")
        while first.isspace() and (more := next(lines, b"")):
            first += more
        blocks = itertools.chain([first], lines)
        if _is_object(first.lstrip().split(b"\n", 1)[0]):
            read_json_lines(blocks, start, rows, reader)
            return
    rows.recoded()
    read_json_values(blocks, rows, reader)


def _is_object(line: bytes) -> bool:
    try:
        parse_object(line)
    except ValueError:
        return False
    return True


def read_json_values(blocks: Iterator[bytes], rows: Rows, reader: DocumentColumns) -> None:
    """A list of JSON objects, or objects one after another.

    :raises UnreadableError: when it is not JSON from some place on.
    """
    values = JsonValues(blocks, reader.decoder)
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            rows.keys(value, bool(reader.columns(list(value))))
            keep_document(value, reader, rows, where=f"row {number}")
        else:
            rows.bad(f"row {number}", f"a JSON object was expected, not {kind_of(value)}")


class JsonValues:
    """The values of a JSON list, or of JSON texts one after another, with one of them in memory at a time."""

    def __init__(self, blocks: Iterator[bytes], decoder: json.JSONDecoder = JSON_DECODER) -> None:
        self._blocks = blocks
        self._json = decoder
        self._decoder = codecs.getincrementaldecoder("utf-8")(MARKED)
        self._text = ""
        self._place = 0
        self._lines = 1
        self._is_at_end = False

    def __iter__(self) -> Iterator[Any]:
        in_list = self._next_character() == "["
        self._place += in_list
        is_first = True
        while (character := self._next_character()) and not (in_list and character == "]" and is_first):
            yield self._value()
            is_first = False
            if in_list:
                character = self._next_character()
                if character == "]":
                    break
                if character != ",":
                    raise self._broken("a list continues with ',' or ends with ']'")
                self._place += 1
        if in_list:
            if self._next_character() != "]":
                raise self._broken("the list has no end")
            self._place += 1
            if self._next_character():
                raise self._broken("something follows the list")

    def _more(self) -> bool:
        """Have at least twice as much text ahead, if there is as much."""
        ahead = len(self._text) - self._place
        if ahead > MOST_OF_LINE:
            raise self._broken(f"it has a value of more than {MOST_OF_LINE:,} characters")
        parts = [self._text[self._place :]]
        self._lines += self._text.count("\n", 0, self._place)
        wanted = max(ahead, 1)
        while wanted > 0 and not self._is_at_end:
            block = next(self._blocks, b"")
            self._is_at_end = not block
            parts.append(self._decoder.decode(block, final=self._is_at_end))
            wanted -= len(parts[-1])
        self._text, self._place = "".join(parts), 0
        return len(self._text) > ahead

    def _next_character(self) -> str:
        """The next one that is no white space, which is not taken; empty at the end."""
        while True:
            found = _NO_SPACE.search(self._text, self._place)
            if found:
                self._place = found.start()
                return found.group()
            self._place = len(self._text)
            if not self._more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except RecursionError:
                raise self._broken("it is nested too deeply") from None
            except json.JSONDecodeError as e:
                cut_off = e.msg.startswith("Unterminated") or e.pos >= (
                    len(self._text.rstrip()) - _LONGEST_WORD
                )
                if not (cut_off and self._more()):
                    self._place = min(e.pos, len(self._text))
                    raise self._broken(e.msg) from None
                continue
            if end == len(self._text) and isinstance(value, float) and self._more():
                continue  # there may be more digits
            self._place = end
            return value

    def _broken(self, reason: str) -> UnreadableError:
        line = self._lines + self._text.count("\n", 0, self._place)
        return UnreadableError(f"line {line}: not JSON: {reason}")
