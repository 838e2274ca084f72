"""The encoder: documents of a dataset to tokens, and which of them a model is trained to predict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hekaton.data import Encoded, TextTokenizer, Whole
from hekaton.scaffold.templates.settings import EncoderSection


class AnswerEncoder:
    """Texts of a question and an answer, of which the answer is learned."""

    def __init__(self, after: str, tokenizer: TextTokenizer) -> None:
        self.after = after
        self.tokenizer = tokenizer
        self.fingerprint = f"learns what follows {after!r}"  # changes when tokens or targets could

    def cut(self, document: str) -> Iterator[Whole]:
        """Documents are short, and encoded in one part."""
        yield Whole(document, size=max(1, len(document)))

    def encode(self, parts: Sequence[Whole]) -> list[Encoded]:
        """The ids and targets of each part, (n,) both."""
        encoded = []
        for part in parts:
            question, mark, answer = part.content.partition(self.after)
            read, learned = self.tokenizer.encode_batch([question + mark, answer])
            targets = np.arange(len(read) + len(learned)) >= len(read)
            encoded.append(Encoded(np.concatenate([read, learned]), targets=targets))
        return encoded


def build(section: EncoderSection, tokenizer: TextTokenizer) -> AnswerEncoder:
    return AnswerEncoder(section.after, tokenizer)
