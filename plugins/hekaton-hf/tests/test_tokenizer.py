"""Tokenizers against the library that they come from, and what is wrong with files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from hekaton.data import TextTokenizer
from hekaton.data.stdlib import build as build_stdlib
from hekaton.errors import DataError
from hekaton_hf.tokenizer import SHIPPED, build

TEXTS = ["def f(x):\n    return x\n", "", "größe 日本 🎉", "\t\r\n  \n", "<|end_of_text|> in a text"]


def words(folder: Path, *, tokens: list[str], config: object = None, special_map: object = None) -> Path:
    """A tokenizer that splits at spaces, with the given words."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.save(str(folder / "tokenizer.json"))
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special_map)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


def test_the_shipped_one_gives_the_ids_of_tokenizers() -> None:
    tokenizer = build(None, None)
    assert isinstance(tokenizer, TextTokenizer)
    reference = tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    ids = tokenizer.encode_batch(TEXTS)
    assert [text.tolist() for text in ids] == [reference.encode(text).ids for text in TEXTS]
    assert {text.dtype for text in ids} == {np.dtype(np.int32)}
    assert tokenizer.vocab_size == 2048 == reference.get_vocab_size()
    assert tokenizer.bos_id == reference.token_to_id("<|begin_of_text|>")
    assert tokenizer.eos_id == reference.token_to_id("<|end_of_text|>")


def test_the_shipped_one_gives_texts_back() -> None:
    tokenizer = build(None, None)
    documents = build_stdlib(None, None)
    texts = [*TEXTS, *documents.fetch(range(0, len(documents), 40))]
    assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode_batch(texts)] == texts


def test_the_shipped_one_makes_python_shorter_than_half_its_characters() -> None:
    (text,) = build_stdlib(None, None).fetch([0])
    assert len(build(None, None).encode_batch([text])[0]) < len(text) / 2


def test_training_is_deterministic_and_complete(repository_script, tmp_path: Path) -> None:
    texts = build_stdlib(None, None).fetch(range(30))
    for name in ("a", "b"):
        repository_script.save(repository_script.train(texts, vocab_size=400), tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("a", "b"))
    assert first == second
    tokenizer = build(None, str(tmp_path / "a"))
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (400, 0, 1)
    every_byte = "".join(map(chr, range(0x180)))  # whose UTF-8 has all bytes that two-byte characters have
    for text in [*TEXTS, every_byte, texts[0]]:
        assert tokenizer.decode(tokenizer.encode_batch([text])[0].tolist()) == text


@pytest.fixture
def repository_script(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    import train_tokenizer

    yield train_tokenizer
    del sys.modules["train_tokenizer"]


def test_marks_as_strings_as_objects_and_from_the_older_file(tmp_path: Path) -> None:
    tokens = ["?", "a", "<s>", "</s>", "<e>"]
    both = words(tmp_path / "1", tokens=tokens, config={"bos_token": "<s>", "eos_token": {"content": "</s>"}})
    older = words(
        tmp_path / "2", tokens=tokens, config={"eos_token": "<e>", "bos_token": None},
        special_map={"bos_token": {"content": "<s>"}, "eos_token": "</s>"},
    )  # fmt: skip
    none = words(tmp_path / "3", tokens=tokens)
    marks = [(build(None, str(path)).bos_id, build(None, str(path)).eos_id) for path in (both, older, none)]
    assert marks == [(2, 3), (2, 4), (None, None)]


def test_the_file_itself_is_a_path_too(tmp_path: Path) -> None:
    folder = words(tmp_path, tokens=["?", "a", "<s>"], config={"bos_token": "<s>"})
    tokenizer = build(None, str(folder / "tokenizer.json"))
    assert tokenizer.encode_batch(["a a b"])[0].tolist() == [1, 1, 0]
    assert tokenizer.bos_id == 2


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path) -> None:
    folder = words(tmp_path, tokens=["?", "a"])
    file = str(folder / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(file)
    made.enable_truncation(2)
    made.enable_padding(length=5)
    made.save(file)
    assert [ids.tolist() for ids in build(None, file).encode_batch(["a a a a", "a"])] == [[1] * 4, [1]]


def test_ids_of_added_tokens_count(tmp_path: Path) -> None:
    folder = words(tmp_path, tokens=["?", "a"])
    content = json.loads((folder / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["model"]["vocab"]["<s>"] = 9
    content["added_tokens"] = [{"id": 9, "content": "<s>", **flags}]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = build(None, str(folder))
    assert tokenizer.encode_batch(["a<s>"])[0].tolist() == [1, 9]
    assert tokenizer.vocab_size == 10


@pytest.mark.parametrize("token", [5, True, ["<s>"], {"content": 3}])
def test_a_special_token_that_is_no_text_is_an_error(tmp_path: Path, token: object) -> None:
    folder = words(tmp_path, tokens=["?", "a", "<s>"], config={"bos_token": token})
    with pytest.raises(DataError, match=r"the bos_token in '.*tokenizer_config\.json' is no text"):
        build(None, str(folder))


def test_half_a_character_of_utf16_is_a_question_mark() -> None:
    tokenizer = build(None, None)
    with_half, with_mark = tokenizer.encode_batch(["a\ud800b", "a?b"])
    assert with_half.tolist() == with_mark.tolist()


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = words(tmp_path / "1", tokens=["?", "a", "<s>"], config={"bos_token": "<s>"})
    shutil.copytree(first, tmp_path / "2")
    same = build(None, str(tmp_path / "2")).fingerprint
    assert build(None, str(first)).fingerprint == same
    (tmp_path / "2" / "tokenizer_config.json").unlink()
    assert build(None, str(tmp_path / "2")).fingerprint != same
    assert build(None, str(words(tmp_path / "3", tokens=["?", "b"]))).fingerprint != same


def test_a_missing_tokenizer_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError) as e:
            build(None, str(path))
        assert f"no tokenizer at '{path}'" in e.value.message
        assert e.value.origin == "model.hf_assets_path"
        assert "the tokenizer that hekaton-hf ships" in e.value.hint


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_broken_tokenizer_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the tokenizer '.*tokenizer.json': "):
        build(None, str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '"x"'])
def test_a_broken_configuration_of_a_tokenizer_is_an_error(tmp_path: Path, content: str) -> None:
    words(tmp_path, tokens=["?"])
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=r"cannot read '.*tokenizer_config.json': "):
        build(None, str(tmp_path))


def test_a_mark_that_is_not_a_token_is_an_error(tmp_path: Path) -> None:
    words(tmp_path, tokens=["?"], config={"eos_token": "</s>"})
    with pytest.raises(DataError, match="does not know its own eos_token '</s>'"):
        build(None, str(tmp_path))


def test_a_mark_that_is_no_text(tmp_path: Path) -> None:
    folder = shutil.copytree(SHIPPED, tmp_path / "copy")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "\\ud800"}')
    with pytest.raises(DataError, match=r"the eos_token in '.*tokenizer_config\.json' is no text"):
        build(None, str(folder))


def test_ids_know_the_bytes_that_they_stand_for(tmp_path: Path) -> None:
    tokenizer = build(None, None)
    lengths = tokenizer.byte_lengths()
    for text, ids in zip(TEXTS[:4], tokenizer.encode_batch(TEXTS[:4]), strict=True):
        assert lengths[ids].sum() == len(text.encode())
    assert lengths[[tokenizer.bos_id, tokenizer.eos_id]].tolist() == [0, 0]
    llama = words(tmp_path, tokens=["?", "▁größe", "<0xF0>", "<0xF>"])
    assert build(None, str(llama)).byte_lengths().tolist() == [1, 8, 1, 5]
