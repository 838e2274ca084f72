"""gigatoken in place of tokenizers: the same ids, and tokenizers again where they are not."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from hekaton.data.stdlib import build as build_stdlib
from hekaton.errors import DataError
from hekaton_hf import fast_encoding
from hekaton_hf.sections import HFTokenizerSection
from hekaton_hf.tokenizer import SHIPPED, build


@pytest.fixture(scope="module")
def texts():
    return build_stdlib(None, None).fetch(range(0, 400, 20))


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory):
    """A tokenizer as GPT-2's, which gigatoken knows."""
    place = tmp_path_factory.mktemp("tokenizer")
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts[:5], trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens(["<|end|>"])
    bpe.save(str(place / "tokenizer.json"))
    return place


def backend(name):
    return HFTokenizerSection(backend=name)


def test_ids_are_those_of_tokenizers(folder, texts, monkeypatch):
    pytest.importorskip("gigatoken", reason="optional")
    monkeypatch.setattr(fast_encoding, "COMPARED", 0)
    odd = ["", "größe 日本 🎉", "half \ud800 a pair", "<|end|> in a text", "\t\r\n  \n"]
    fast, slow = build(backend("gigatoken"), str(folder)), build(backend("tokenizers"), str(folder))
    assert fast._fast is not None
    assert slow._fast is None
    for batch in (texts, odd, odd[:2]):
        found, expected = fast.encode_batch(batch), slow.encode_batch(batch)
        assert all(
            np.array_equal(*pair) and pair[0].dtype == np.int32 for pair in zip(found, expected, strict=True)
        )


def test_a_difference_ends_its_use(folder, texts, monkeypatch, caplog):
    class Wrong:
        asked = 0

        @classmethod
        def from_json(cls, content):
            return cls()

        def encode(self, text):
            Wrong.asked += 1
            return np.array([1, 2, 3], np.uint32)

    monkeypatch.setitem(
        sys.modules, "gigatoken", SimpleNamespace(Tokenizer=Wrong, __spec__=SimpleNamespace())
    )
    tokenizer, slow = build(None, str(folder)), build(backend("tokenizers"), str(folder))
    for batch in (texts[:2], texts):
        expected = slow.encode_batch(batch)
        assert all(
            np.array_equal(*pair) for pair in zip(tokenizer.encode_batch(batch), expected, strict=True)
        )
    assert Wrong.asked == 2
    assert caplog.text.count("gigatoken gives other ids than tokenizers for the text that begins with") == 1


def test_what_it_does_not_know_is_said_in_one_line(folder, monkeypatch, caplog):
    def unknown(content):
        raise RuntimeError("Unknown pre_tokenizer\n\nLocation: somewhere")

    caplog.set_level(logging.INFO, "hekaton")
    known = SimpleNamespace(Tokenizer=SimpleNamespace(from_json=unknown), __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gigatoken", known)
    assert len(build(None, str(SHIPPED)).encode_batch(["a b"])[0]) == 2
    assert caplog.messages == [
        "notice: gigatoken does not know this tokenizer, tokenizers encodes: Unknown pre_tokenizer"
    ]
    with pytest.raises(DataError, match="which does not know this tokenizer: Unknown pre_tokenizer\n"):
        build(backend("gigatoken"), str(SHIPPED))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match='"gigatoken", which is not installed'):
        build(backend("gigatoken"), str(folder))
    assert build(None, str(folder))._fast is None
