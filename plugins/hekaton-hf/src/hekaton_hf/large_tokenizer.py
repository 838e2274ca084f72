"""A tokenizer whose table is in memory once a machine, and not once in each of its processes.

A table of 128,000 ids takes some 100 MB. Each of several processes on a machine keeps what the configuration
asks of it (how many ids, which marks), and no more where its data is token ids. The first that encodes text
starts :mod:`hekaton_hf.serving`, which encodes for all of them. Where that cannot be had, each process reads
the table for itself. A single process has the table once in any case, with all workers that it forks.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hekaton.data import Integers, TokenIds
from hekaton.environment import number
from hekaton_hf.serving import OPERATIONS, Client, Encodes, NotServed

log = logging.getLogger("hekaton")

LARGE = 1 << 20
"""Bytes of a ``tokenizer.json`` from which on its table is kept once a machine: those of some 13,000 ids."""


def is_shared(size: int) -> bool:
    """Whether this process is one of several on its machine, and the table of a tokenizer is large.

    :param size: of its ``tokenizer.json``, in bytes.
    """
    several = number("LOCAL_WORLD_SIZE", default=1, at_least=1) > 1
    return size >= LARGE and several and sys.platform == "linux"


class LargeTokenizer:
    """A tokenizer of Hugging Face, without its table."""

    def __init__(self, known: Encodes, *, client: Client, read: Callable[[], Encodes]) -> None:
        """:param known: the tokenizer, which is not kept.
        :param client: of the process that encodes.
        :param read: reads the tokenizer once more.
        """
        self.vocab_size = known.vocab_size
        self.bos_id = known.bos_id
        self.eos_id = known.eos_id
        self.fingerprint = known.fingerprint
        self.folder = known.folder
        self._files = known.files()
        self._client = client
        self._read = read
        self._own: Encodes | None = None

    def files(self) -> Mapping[str, str]:
        return self._files

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        return self._ask("encode_batch", texts)

    def encode_piece(self, text: str, *, before: str, after: str) -> TokenIds:
        ids: TokenIds = self._ask("encode_piece", [text, before, after])[0]
        return ids

    def encode_places(self, text: str) -> tuple[TokenIds, Integers]:
        ids, places = self._ask("encode_places", [text])
        return ids, places

    def byte_lengths(self) -> Integers:
        lengths: Integers = self._ask("byte_lengths", [])[0]
        return lengths

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._ask("decode", [np.array(ids, np.int64)])[0])

    def _ask(self, operation: str, values: Sequence[Any]) -> list[Any]:
        if self._own is None:
            try:
                return self._client.ask(operation, values)
            except NotServed as error:
                log.info("notice: this process encodes for itself: %s", error)
                self._own = self._read()
                return_freed_memory()
        return OPERATIONS[operation](self._own, values)


def return_freed_memory() -> None:
    """Reading a table needs twice its memory for a moment, and the C library keeps what was freed."""
    with contextlib.suppress(OSError, AttributeError):  # another one than glibc
        ctypes.CDLL(None).malloc_trim(0)
