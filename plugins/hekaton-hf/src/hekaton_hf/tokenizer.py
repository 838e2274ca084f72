"""Tokenizers of the Hugging Face kind: a folder with a ``tokenizer.json``."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from hekaton.checkpoint.disk.folders import read_file
from hekaton.data import Integers, TokenIds, pieces
from hekaton.errors import DataError
from hekaton_hf.fast_encoding import FastEncoding, fast_encoding
from hekaton_hf.large_tokenizer import LargeTokenizer, is_shared, return_freed_memory
from hekaton_hf.serving import Client

SHIPPED = Path(__file__).parent / "assets" / "python_stdlib"
"""The tokenizer of ``python_stdlib``: 2,048 ids, see ``scripts/train_tokenizer.py`` of the repository."""
MAX_BYTES = 1 << 28
"""Of a tokenizer's file: ten times the largest published ones."""

_BYTE = re.compile("<0x[0-9A-F]{2}>")
_RARE = "\U000f0000"
"""Of a private use area."""


class HFTokenizer:
    """A ``tokenizer.json`` with its begin and end marks."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        bos_id: int | None,
        eos_id: int | None,
        fingerprint: str,
        files: Mapping[str, str] | None = None,
        folder: Path | None = None,
        fast: FastEncoding | None = None,
    ) -> None:
        # The file may ask for padding or truncation, which would add tokens to documents or lose some.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.fingerprint = fingerprint
        self._files = dict(files or {})
        self._fast = fast
        self.folder = folder
        """Where it was read."""
        # Ids of added tokens can lie beyond the number of tokens.
        highest = max([tokenizer.get_vocab_size() - 1, *tokenizer.get_added_tokens_decoder()])
        self.vocab_size = highest + 1
        # Where characters without a token are left out, places are counted without them, and of no use.
        offsets = self._encode(f"{_RARE}a").offsets
        self._knows_places = bool(offsets) and offsets[-1][1] == 2

    def files(self) -> dict[str, str]:
        """Size and hash of ``tokenizer.json``, and the marks that the files beside it name."""
        return self._files

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, as the tokenizer's own ``encode_batch`` without special tokens around it. Lone
        surrogates, which no UTF-8 can hold, count as question marks."""
        return self._fast.encode(texts, self._encode_batch) if self._fast else self._encode_batch(texts)

    def _encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # which of them is up to the version
            encodings = self._tokenizer.encode_batch_fast(
                [_encodable(text) for text in texts], add_special_tokens=False
            )
        return [np.frombuffer(array("i", encoding.ids), np.int32) for encoding in encodings]

    def encode_piece(self, text: str, *, before: str, after: str) -> TokenIds:
        """Ids of a part of a text: of the tokens that lie in it when the tokenizer sees what is around it.

        A token that would lie on both sides of a cut is the second part's. Both parts ask the tokenizer for
        it with the same surroundings, and where more of the text gives other tokens they stop at the cut:
        nothing of the text is lost or doubled.
        """
        if not self._knows_places:
            return np.array(self._encode(text).ids, np.int32)
        whole = before + text + after
        start, end = len(before), len(before) + len(text)
        if before:
            start -= self._overlap_at(whole[: start + pieces.CONTEXT], start)
        if after:
            end -= self._overlap_at(whole[end - pieces.CONTEXT :], pieces.CONTEXT)
        part = whole[start:end]
        # Most tokenizers start anew after the end of a line, and what they put before a text comes before it.
        befores, afters = [whole[:start], "\n", ""], [whole[end:], ""]
        while True:
            start, end = len(befores[0]), len(befores[0]) + len(part)
            encoding = self._encode(befores[0] + part + afters[0])
            places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            firsts, lasts = places[:, 0], places[:, 1]
            if np.any((firsts < start) & (lasts > start)):
                del befores[0]
            elif np.any((firsts < end) & (lasts > end)):
                del afters[0]
            else:
                break
        is_inside = firsts >= start
        if afters[0]:
            is_inside &= firsts < end
        return np.array(encoding.ids, np.int32)[is_inside]

    def _overlap_at(self, around: str, cut: int) -> int:
        """How many characters before a cut the token begins that lies on both sides of it; 0 for none."""
        on_both = [first for first, last in self._encode(around).offsets if first < cut < last]
        return cut - min(on_both, default=cut)

    def _encode(self, text: str) -> tokenizers.Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            return self._tokenizer.encode(_encodable(text), add_special_tokens=False)

    def encode_places(self, text: str) -> tuple[TokenIds, Integers]:
        encoding = self._encode(text)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)

    def byte_lengths(self) -> Integers:
        """(vocab_size,) bytes of text that each id stands for: by the alphabet of byte-level vocabularies;
        otherwise those of the token, in which ``▁`` is a space and ``<0x0A>`` one byte."""
        described = json.loads(self._tokenizer.to_str())
        steps = (described["decoder"] or {}).get("decoders", [described["decoder"] or {}])
        by_bytes = any(step.get("type") == "ByteLevel" for step in steps)
        lengths = np.zeros(self.vocab_size, np.int64)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=False).items():
            if by_bytes:
                lengths[number] = len(token)
            elif _BYTE.fullmatch(token):
                lengths[number] = 1
            else:
                lengths[number] = len(token.replace("▁", " ").encode("utf-8", "replace"))
        for number, added in self._tokenizer.get_added_tokens_decoder().items():
            lengths[number] = 0 if added.special else len(added.content.encode("utf-8", "replace"))
        return lengths

    def prefix_ids(self) -> tuple[int, ...]:
        ids, plain = (self._tokenizer.encode("a", add_special_tokens=marks).ids for marks in (True, False))
        return tuple(ids[: ids.index(plain[0])]) if plain and plain[0] in ids else ()

    def chat_template(self) -> str:
        from hekaton_hf.chat.rendering import template_source

        return template_source(self.folder)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        from hekaton_hf.chat.rendering import rendered

        return rendered(self.folder, messages, ask=ask)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _encodable(text: str) -> str:
    """Of the same length."""
    return text.encode("utf-8", "replace").decode("utf-8")


def build(section: Any, path: str | None) -> HFTokenizer | LargeTokenizer:
    """The tokenizer at ``path``, a folder or a ``tokenizer.json``; ``None`` is the one we ship.

    :raises DataError: when there is none, it cannot be read, or its begin or end mark is not in it.
    """
    file = Path(path) if path is not None else SHIPPED
    if file.is_dir():
        file /= "tokenizer.json"
    if not file.is_file():
        raise DataError(
            f"no tokenizer at '{path}': there is no file '{file}'",
            origin="model.hf_assets_path",
            hint="give a folder with a tokenizer.json; left out, it is the tokenizer that hekaton-hf ships",
        )
    backend = section.backend if section is not None else "auto"
    shared = is_shared(file.stat().st_size)
    # Whether gigatoken can be had is for the process to find out that encodes, unless it is asked for.
    tokenizer = read(file, "tokenizers" if shared and backend == "auto" else backend)
    if not shared:
        return tokenizer
    known = tokenizer.fingerprint
    large = LargeTokenizer(
        tokenizer, client=Client(file, backend, known), read=lambda: _read_again(file, backend, known)
    )
    del tokenizer
    return_freed_memory()
    return large


def _read_again(file: Path, backend: str, fingerprint: str) -> HFTokenizer:
    tokenizer = read(file, backend)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(
            f"the tokenizer '{file}' has changed since the run started", origin="model.hf_assets_path"
        )
    return tokenizer


def read(file: Path, backend: str) -> HFTokenizer:
    """The tokenizer of a ``tokenizer.json``, with its table.

    :param backend: as in ``[hf_tokenizer]``.
    :raises DataError: as :func:`build`.
    """
    try:
        content = read_file(file, limit=MAX_BYTES)
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as e:  # tokenizers raises nothing narrower
        raise DataError(f"cannot read the tokenizer '{file}': {e}", origin="model.hf_assets_path") from e
    marks = _marks(file.parent, "bos_token", "eos_token")
    ids = {kind: _id_of(tokenizer, kind, token, file) for kind, token in marks.items()}
    return HFTokenizer(
        tokenizer,
        bos_id=ids.get("bos_token"),
        eos_id=ids.get("eos_token"),
        fingerprint=hashlib.sha256(content + json.dumps(marks).encode()).hexdigest()[:32],
        files={
            "tokenizer.json": f"{len(content):,} bytes, {hashlib.sha256(content).hexdigest()[:16]}",
            **marks,
        },
        folder=file.parent,
        fast=fast_encoding(content, backend),
    )


def special_tokens(folder: Path) -> dict[str, str]:
    """``bos_token`` and others that the files beside a tokenizer name, as chat templates know them."""
    kinds = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    return _marks(folder, *(f"{kind}_token" for kind in kinds))


def pad_id(folder: Path) -> int | None:
    """The id of the padding token that the files beside ``tokenizer.json`` name.

    :raises DataError: as :func:`build`.
    """
    token = _marks(folder, "pad_token").get("pad_token")
    if token is None:
        return None
    file = folder / "tokenizer.json"
    return _id_of(tokenizers.Tokenizer.from_file(str(file)), "pad_token", token, file)


def _marks(folder: Path, *kinds: str) -> dict[str, str]:
    """Tokens such as ``bos_token``, as far as the files beside the tokenizer name them."""
    marks: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(read_file(file, limit=MAX_BYTES))
            if not isinstance(content, dict):
                raise ValueError(f"a JSON object was expected, not {type(content).__name__}")
        except (OSError, ValueError, RecursionError) as e:
            raise DataError(f"cannot read '{file}': {e}", origin="model.hf_assets_path") from e
        for kind in kinds:
            token = content.get(kind)
            token = token.get("content") if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise DataError(
                    f"the {kind} in '{file}' is no text: {token!r:.80}", origin="model.hf_assets_path"
                )
            if token is not None:
                if _encodable(token) != token:
                    raise DataError(
                        f"the {kind} in '{file}' is no text: it has half of a surrogate pair",
                        origin="model.hf_assets_path",
                    )
                marks.setdefault(kind, token)
    return marks


def _id_of(tokenizer: tokenizers.Tokenizer, kind: str, token: str, file: Path) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise DataError(
            f"the tokenizer '{file}' does not know its own {kind} '{token}'", origin="model.hf_assets_path"
        )
    return int(found)
