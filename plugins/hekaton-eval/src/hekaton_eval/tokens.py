"""A tokenizer as the harness uses one: marks before texts, and texts without marks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from hekaton.data import CountsBytes, MarksTexts, TextTokenizer
from hekaton.errors import DataError


class Tokens:
    """Encodes and decodes as the harness's own backend does with the tokenizer in the format of Hugging Face.

    :param add_bos_token: begin texts with it, or not; by default as the tokenizer is published, and for one
        that is not published as documents began in training.
    """

    def __init__(self, tokenizer: TextTokenizer, *, add_bos_token: bool | None) -> None:
        self.tokenizer = tokenizer
        bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
        if add_bos_token is None:
            self._prefix = tokenizer.prefix_ids() if isinstance(tokenizer, MarksTexts) else bos
        else:
            self._prefix = bos if add_bos_token else ()

    @cached_property
    def eot_token_id(self) -> int:
        """:raises DataError: for a tokenizer without marks."""
        if self.tokenizer.eos_id is None:
            raise DataError("the tokenizer names no token that ends a text, which tasks need")
        return self.tokenizer.eos_id

    @cached_property
    def eot_text(self) -> str | None:
        """What the mark at the end looks like, ``None`` where there is none."""
        return None if self.tokenizer.eos_id is None else self.tokenizer.decode([self.tokenizer.eos_id])

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @cached_property
    def _prefix_text(self) -> str:
        return self.tokenizer.decode([self.prefix_token_id])

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Ids that are no text."""
        tokenizer = self.tokenizer
        if isinstance(tokenizer, CountsBytes):
            return frozenset((tokenizer.byte_lengths() == 0).nonzero()[0].tolist())
        return frozenset(one for one in (tokenizer.bos_id, tokenizer.eos_id) if one is not None)

    def encode(self, text: str, *, marks: bool | None) -> list[int]:
        """:param marks: put the tokenizer's own before it; by default where it does not begin with one."""
        ids: list[int] = self.tokenizer.encode_batch([text])[0].tolist()
        if not self._prefix:
            return ids
        if marks is None:
            marks = not self._prefix_text or not text.startswith(self._prefix_text)
        return [*self._prefix, *ids] if marks else ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([one for one in ids if one not in self._marks])
