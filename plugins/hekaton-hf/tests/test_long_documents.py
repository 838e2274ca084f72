"""Documents that are encoded in pieces, with tokenizers to which it matters where a text begins and ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from hekaton.data import PieceTokenizer
from hekaton.data.pieces import UnreadText, encode_pieces
from hekaton.data.stdlib import build as build_stdlib
from hekaton_hf.tokenizer import HFTokenizer, build


def llama_2() -> tokenizers.Tokenizer:
    """No words: "▁" is put before the text and in the place of each space; unknown characters are bytes."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def with_words(
    pre_tokenizer: object, decoder: object, normalizer: object = None, unknown: str | None = "<unk>"
) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(unk_token=unknown))
    made.pre_tokenizer = pre_tokenizer
    made.decoder = decoder
    if normalizer is not None:
        made.normalizer = normalizer
    return made


KINDS = {
    "llama 2": llama_2,
    "metaspace, always": lambda: with_words(pre_tokenizers.Metaspace(), decoders.Metaspace()),
    "metaspace, first": lambda: with_words(
        pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first")
    ),
    "metaspace, not split": lambda: with_words(pre_tokenizers.Metaspace(split=False), decoders.Metaspace()),
    "byte level with a space": lambda: with_words(
        pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    ),
    "byte level": lambda: with_words(pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()),
    "no token for unknown characters": lambda: with_words(
        pre_tokenizers.Punctuation(), decoders.Fuse(), unknown=None
    ),
    "stripped": lambda: with_words(
        pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), normalizers.Strip()
    ),
}


@pytest.fixture(scope="module")
def trained() -> dict[str, HFTokenizer]:
    texts = build_stdlib(None, None).fetch(range(0, 200, 10))
    bytes_as_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    made = {}
    for name, kind in KINDS.items():
        tokenizer = kind()
        trainer = trainers.BpeTrainer(
            vocab_size=1500,
            special_tokens=["<unk>", *(bytes_as_tokens if name == "llama 2" else [])],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
            if "byte" in name or name == "stripped"
            else [],
            max_token_length=12,
            show_progress=False,
        )
        # Without words a trainer takes lines for words.
        tokenizer.train_from_iterator((line for text in texts for line in text.splitlines()), trainer)
        if name == "llama 2":
            content = json.loads(tokenizer.to_str())
            content["added_tokens"] = content["added_tokens"][:1]
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        made[name] = HFTokenizer(tokenizer, bos_id=None, eos_id=None, fingerprint=name)
    return made


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hekaton.data.pieces.PIECE", 1000)
    monkeypatch.setattr("hekaton.data.pieces.CONTEXT", 100)


def in_pieces(tokenizer: HFTokenizer, text: str) -> list[int]:
    unread = UnreadText(text)
    pieces = [unread.cut()]
    while not pieces[-1].is_last:
        pieces.append(unread.cut())
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) >= len(text) // 1000
    return [int(id_) for ids in encode_pieces(tokenizer, pieces) for id_ in ids]


def at_once(tokenizer: HFTokenizer, text: str) -> list[int]:
    (ids,) = tokenizer.encode_batch([text])
    return ids.tolist()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("no token")])
@pytest.mark.parametrize("line_ends", ["\n", " "])
def test_ids_are_those_of_the_whole_text(trained: dict[str, HFTokenizer], kind: str, line_ends: str) -> None:
    tokenizer = trained[kind]
    assert isinstance(tokenizer, PieceTokenizer)
    text = "größe 日本 🎉 " + "\n".join(build_stdlib(None, None).fetch(range(3, 60, 10)))
    text = text[:20_000].replace("\n", line_ends)
    assert len(text) == 20_000
    assert in_pieces(tokenizer, text) == at_once(tokenizer, text)


@pytest.mark.parametrize("kind", ["llama 2", "metaspace, always", "byte level"])
def test_cuts_in_the_middle_of_tokens(trained: dict[str, HFTokenizer], kind: str) -> None:
    """Text without a space or line end has no better place for a cut."""
    text = "".join("".join(build_stdlib(None, None).fetch(range(3, 60, 10))).split())[:20_000]
    assert len(text) == 20_000
    assert in_pieces(trained[kind], text) == at_once(trained[kind], text)


def test_ids_of_the_shipped_tokenizer_are_those_of_the_whole_text() -> None:
    tokenizer = build(None, None)
    for text in build_stdlib(None, None).fetch(range(0, 100, 20)):
        assert in_pieces(tokenizer, text) == at_once(tokenizer, text)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "stripped"])
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["def ", "return", " ", "\n", "    ", "x", "é", "日本", "🎉", "\r\n", "=="]), st.integers(1, 300)),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_no_text_is_lost_or_added(
    trained: dict[str, HFTokenizer], kind: str, parts: list[tuple[str, int]]
) -> None:
    """Also where there is no good place for a cut: runs of one character are tokens on both sides of any."""
    tokenizer = trained[kind]
    text = "".join(part * count for part, count in parts)
    assert tokenizer.decode(in_pieces(tokenizer, text)) == tokenizer.decode(at_once(tokenizer, text))


def test_halves_of_surrogate_pairs() -> None:
    tokenizer = build(None, None)
    text = "a \ud800 b\n" * 500
    assert in_pieces(tokenizer, text) == at_once(tokenizer, text.replace("\ud800", "?"))


def test_a_file_with_a_long_document_through_the_loader(trained: dict[str, HFTokenizer], here: Path) -> None:
    """From the file to the ids of a batch: those of the text at once, without a space before any piece."""
    from hekaton.data.loader import build_loader
    from hekaton_hf.sections import TextDatasetSection
    from hekaton_hf.text import build as build_text

    tokenizer = trained["llama 2"]
    text = "some words, and more\n" * 400
    (here / "a.txt").write_text(text)
    expected = at_once(tokenizer, text)
    loader = build_loader(
        build_text(TextDatasetSection(), "a.txt"), tokenizer, seq_len=len(expected) - 1, global_batch_size=1,
        rows=range(1), seed=0, repeat=False,
    )  # fmt: skip
    step = loader.next_step()
    assert [*step["tokens"][0].tolist(), int(step["labels"][0, -1])] == expected
