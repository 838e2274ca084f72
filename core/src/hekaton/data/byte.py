"""A tokenizer that needs nothing: one id per UTF-8 byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hekaton.data import Integers, TokenIds
from hekaton.errors import DataError


class ByteTokenizer:
    """Ids 0 to 255 are bytes, 256 begins a document and 257 ends it."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257
    fingerprint = "byte"

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        # surrogatepass: JSON can carry lone surrogates, which strict UTF-8 refuses.
        return [
            np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) for text in texts
        ]

    def encode_places(self, text: str) -> tuple[TokenIds, Integers]:
        (ids,) = self.encode_batch([text])
        starts = np.cumsum((ids & 0xC0) != 0x80) - 1  # a byte 10xxxxxx continues a character
        return ids, np.stack([starts, starts + 1], axis=1)

    def byte_lengths(self) -> Integers:
        return np.array([1] * 256 + [0, 0])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; ids that are no byte are left out, broken UTF-8 becomes U+FFFD."""
        return bytes(i for i in ids if 0 <= i < 256).decode("utf-8", "replace")


def build(section: Any, path: str | None) -> ByteTokenizer:
    """:raises DataError: when given a path, since there is nothing to read."""
    if path is not None:
        raise DataError(
            f"tokenizer 'byte' reads no files, and is given '{path}'",
            hint='leave out model.hf_assets_path, or set model.tokenizer = "hf"',
        )
    return ByteTokenizer()
