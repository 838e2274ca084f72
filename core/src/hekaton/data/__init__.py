"""Documents -> tokens -> rows -> batches, with a global cursor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
class KnownFiles(Protocol):
    """A dataset or tokenizer that can say which of its files has which content.

    Where the fingerprints of machines differ, a run names the files that do. One without this method is named
    as a whole.
    """

    def files(self) -> Mapping[str, str]:
        """Name of each file -> a few words that change with its content, such as its size and a digest. The
        names are the same on all machines: relative to the folder that all files lie in."""


@runtime_checkable
class TextTokenizer(Protocol):
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


@runtime_checkable
class PieceTokenizer(TextTokenizer, Protocol):
    """A tokenizer to which it matters where a text begins or ends: that puts a space before it, for example.

    Documents of more than 262,144 characters are encoded in pieces. A tokenizer without this method encodes
    each as if it were a text of its own.
    """

    def encode_piece(self, text: str, *, before: str, after: str) -> TokenIds:
        """Ids of a part of a longer text.

        :param before: the end of what comes before the part, empty where nothing does.
        :param after: the beginning of what comes after it.
        :returns: ids such that those of all parts, one after the other, are ids of the whole.
        """
