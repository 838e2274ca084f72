"""Documents and a tokenizer that can be read by eye: the text "7 8 9" has the ids 7, 8 and 9."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from hekaton.data import TokenIds


@dataclass
class Numbers:
    """Documents, and every index that was fetched, in order."""

    texts: list[str]
    fingerprint: str = "numbers"
    fetched: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def fetch(self, indices: Sequence[int]) -> list[str]:
        self.fetched += indices
        return [self.texts[index] for index in indices]


@dataclass
class NumberTokenizer:
    bos_id: int | None = None
    eos_id: int | None = None
    vocab_size: int = 10_000
    fingerprint: str = "number tokenizer"

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        return [np.array([int(word) for word in text.split()], np.int32) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEKATON_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def numbers() -> Callable[..., Numbers]:
    return lambda *texts: Numbers(list(texts))


@pytest.fixture
def number_tokenizer() -> Callable[..., NumberTokenizer]:
    return NumberTokenizer


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs in the documents' own order, for expectations written by hand."""
    monkeypatch.setattr(
        "hekaton.data.order.document_at", lambda places, *, documents, seed: places % documents
    )
