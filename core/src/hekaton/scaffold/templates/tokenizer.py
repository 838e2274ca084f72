"""The tokenizer: texts to ids and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hekaton.data import TokenIds

FIRST, LAST = ord(" "), ord("~")
NEWLINE, BEGIN, END = range(LAST - FIRST + 1, LAST - FIRST + 4)
OTHER = ord("?") - FIRST


class AsciiTokenizer:
    """An id for each printable character of ASCII, and one for the end of a line; all others are '?'."""

    vocab_size = END + 1
    bos_id = BEGIN
    eos_id = END
    fingerprint = "ascii, version 1"  # changes when a text could have other ids

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text, without BEGIN and END, which encoders add."""
        return [np.array([_id(character) for character in text], np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, of which BEGIN and END are left out."""
        return "".join(_character(one) for one in ids if one not in (BEGIN, END))


def _id(character: str) -> int:
    if character == "\n":
        return NEWLINE
    return ord(character) - FIRST if FIRST <= ord(character) <= LAST else OTHER


def _character(number: int) -> str:
    return "\n" if number == NEWLINE else chr(FIRST + number)


def build(section: None, path: str | None) -> AsciiTokenizer:
    """:param path: ``model.hf_assets_path``, which this tokenizer does not need."""
    return AsciiTokenizer()
