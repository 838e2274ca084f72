"""Documents -> tokens -> rows -> batches, with a global cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = npt.NDArray[np.int32]


@runtime_checkable
class Documents(Protocol):
    """A dataset: a sized collection of texts with random access. Order, packing, position: the core's."""

    fingerprint: str
    """Changes when the documents or their order change; compared when a run resumes."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> list[str]:
        """The texts at ``indices``, each in ``range(len(self))``, in the order asked for."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    """Number of ids, special tokens included: every id is below it."""

    bos_id: int | None
    eos_id: int | None

    fingerprint: str
    """Changes when the same text could encode to other ids; compared when a run resumes."""

    def encode_batch(self, texts: Sequence[str]) -> list[TokenIds]:
        """Ids of each text, without special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str: ...
