"""The tokenizer of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from hekaton.data import TextTokenizer
from hekaton.data.byte import build
from hekaton.errors import DataError


def test_ids_are_utf8_bytes() -> None:
    tokenizer = build(None, None)
    assert isinstance(tokenizer, TextTokenizer)
    ids = tokenizer.encode_batch(["aé", "", "\n"])
    assert [text.tolist() for text in ids] == [[97, 0xC3, 0xA9], [], [10]]
    assert {text.dtype for text in ids} == {np.dtype(np.int32)}
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (258, 256, 257)


def test_decodes_what_it_encoded_and_leaves_marks_out() -> None:
    tokenizer = build(None, None)
    assert tokenizer.decode([256, *tokenizer.encode_batch(["größe 日本"])[0], 257]) == "größe 日本"
    assert tokenizer.decode([0xC3]) == "\ufffd"


def test_half_a_character_of_utf16_is_encoded_too() -> None:
    assert build(None, None).encode_batch(["\ud800"])[0].tolist() == [0xED, 0xA0, 0x80]


def test_a_path_is_refused() -> None:
    with pytest.raises(DataError, match=r"tokenizer 'byte' reads no files, and is given 'x'"):
        build(None, "x")
