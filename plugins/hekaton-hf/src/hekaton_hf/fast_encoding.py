"""The same ids from ``gigatoken``, where that is installed and knows the tokenizer: some 150 times as fast.

It is another implementation, so its ids are compared with those of ``tokenizers`` on the first documents of
each process that encodes. A difference, or a tokenizer that it does not know, is said in one line, and
``tokenizers`` encodes.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hekaton.data import TokenIds
from hekaton.errors import DataError

log = logging.getLogger("hekaton")

COMPARED = 200
"""Documents that are encoded twice."""


class FastEncoding:
    """Encodes as ``tokenizers`` does, as far as that was compared."""

    def __init__(self, encoder: Any) -> None:
        """:param encoder: a ``gigatoken.Tokenizer``."""
        self._encoder = encoder
        self._left = COMPARED

    def encode(
        self, texts: Sequence[str], reference: Callable[[Sequence[str]], list[TokenIds]]
    ) -> list[TokenIds]:
        """:param reference: what ``tokenizers`` gives."""
        if self._encoder is None:
            return reference(texts)
        try:
            # One by one: arrays without a copy, and on this thread alone.
            found = [self._encoder.encode(text).view(np.int32) for text in texts]
        except (TypeError, UnicodeEncodeError):  # halves of surrogate pairs
            return reference(texts)
        if self._left > 0:
            self._left -= len(texts)
            expected = reference(texts)
            wrong = next(
                (number for number, pair in enumerate(zip(found, expected, strict=True))
                 if not np.array_equal(*pair)),
                None,
            )  # fmt: skip
            if wrong is not None:
                self._encoder = None
                log.warning(
                    "gigatoken gives other ids than tokenizers for the text that begins with %r: tokenizers "
                    "encodes", texts[wrong][:40],
                )  # fmt: skip
            return expected
        return found


def fast_encoding(content: bytes, backend: str) -> FastEncoding | None:
    """For a ``tokenizer.json``, where it can be had.

    :param backend: ``auto``; ``gigatoken``, without which it is an error; or ``tokenizers``.
    :raises DataError: when it is asked for and cannot be had.
    """
    if backend == "tokenizers":
        return None
    if importlib.util.find_spec("gigatoken") is None:
        if backend == "gigatoken":
            raise DataError(
                'hf_tokenizer.backend = "gigatoken", which is not installed',
                hint='pip install "hekaton-hf[fast]"',
            )
        return None
    try:
        import gigatoken

        return FastEncoding(gigatoken.Tokenizer.from_json(content))
    except Exception as e:  # it raises nothing narrower
        said = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        if backend == "gigatoken":
            raise DataError(
                f'hf_tokenizer.backend = "gigatoken", which does not know this tokenizer: {said}',
                hint='set hf_tokenizer.backend = "auto"',
            ) from e
        log.info("notice: gigatoken does not know this tokenizer, tokenizers encodes: %s", said)
        return None
