"""Documents -> tokens -> rows -> batches, with a global cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

TokenIds: TypeAlias = npt.NDArray[np.int32]
Integers: TypeAlias = npt.NDArray[np.int64]
Values: TypeAlias = npt.NDArray[Any]
"""What rows are made of: token ids, or numbers of another kind."""


@runtime_checkable
class Documents(Protocol):
    """A dataset: a sized collection of documents with random access. Their order is an order's, their tokens
    are an encoder's, the rows that they fill a row maker's."""

    fingerprint: str
    """Changes when the documents or their order change; compared when a run resumes."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        """The documents at ``indices``, each in ``range(len(self))``, in the order asked for: texts, or what
        else the encoder of the dataset takes."""


@runtime_checkable
class ShufflesWithin(Protocol):
    """A dataset whose documents have parts in an order of their own, another one in each epoch."""

    def fetch_shuffled(self, indices: Sequence[int], keys: Sequence[int]) -> list[Any]:
        """As :meth:`Documents.fetch`.

        :param keys: of each document a number of 64 bits, which the seed of the run and the epoch fix.
        """


@runtime_checkable
class JoinedDocuments(Protocol):
    """A dataset of token ids that can give many documents at once, one after the other in one array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its ids."""

    def locate(self, indices: Integers) -> Integers:
        """Where documents lie.

        :returns: (n, 3): a number of a file, where the document begins in it, and where it ends, in ids.
        """

    def views(self, located: Integers, dtype: np.dtype[Any]) -> Iterator[memoryview]:
        """The ids of documents or of parts of them, each as a view of its bytes.

        :param located: (n, 3), n > 0: some of what :meth:`locate` returned, or places within documents as it
            gives whole ones.
        :param dtype: of the ids: the dataset's own, or one that holds more.
        """


@runtime_checkable
class SaysPlaces(Protocol):
    """A dataset of token ids that can say where one lies."""

    def place_of(self, index: int, token: int) -> str:
        """File and place of a token of a document, for an error."""


@runtime_checkable
class DocumentOrder(Protocol):
    """Which document of a dataset stands at which place of what is read."""

    def at(self, places: Integers) -> Integers:
        """The documents at some places of an endless sequence.

        :param places: (n,) places from 0. The answer depends on nothing else, so that any process can ask for
            any place at any time.
        :returns: (n,) indices of documents. A dataset of n documents has each once in every n places that
            begin at a multiple of n: an epoch.
        """


class Part(Protocol):
    """What an encoder encodes at once: a document, or a part of a long one."""

    @property
    def size(self) -> int:
        """About how many tokens or characters it has; a row takes so much at once and no more."""

    @property
    def is_first(self) -> bool:
        """Whether the document begins with it."""

    @property
    def is_last(self) -> bool:
        """Whether the document ends with it."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A document that is encoded in one part."""

    content: Any
    size: int = 1
    is_first: bool = True
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a part of a document, or what else it is a sequence of.

    :param ids: (n,), with the marks around a document where the encoder puts any; none skips the document.
        Where documents are no texts: (n, ...) of any type, n units that a row maker knows how to take, such
        as one image each.
    :param targets: (n,), which of the tokens a model is trained to predict; ``None`` for all.
    :param breaks: where texts begin, in a document that is a file of many: ascending places in ``ids``. Only
        row makers that have ``takes_joined`` read such.
    """

    ids: Values
    targets: npt.NDArray[np.bool_] | None = None
    breaks: Integers | None = None


@runtime_checkable
class DocumentEncoder(Protocol):
    """Documents of one kind to tokens, with what is to be learned of them."""

    fingerprint: str
    """Changes when the same document could encode to other tokens with the same tokenizer; compared when a
    run resumes."""

    def cut(self, document: Any) -> Iterator[Part]:
        """The parts that a document is encoded in, in their order, at least one; mostly ``Whole(document)``
        alone. How it is cut depends on the document alone."""

    def encode(self, parts: Sequence[Any]) -> list[Encoded]:
        """The tokens of each part. They depend on the part alone, and not on the others."""


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
class ChecksRows(Protocol):
    """A dataset that cannot be read by any number of rows."""

    def check_rows(self, rows: int) -> None:
        """:param rows: of the global batch.
        :raises DataError: when they are too many, saying what to do.
        """


@runtime_checkable
class HasNotices(Protocol):
    """A dataset of which something is to be known before a run, such as files that it does not read."""

    notices: Sequence[str]
    """A line each, which names what it is about."""


@runtime_checkable
class MadeByTokenizer(Protocol):
    """A dataset of token ids. One that another tokenizer than the run's made is refused."""

    made_with: str | None
    """Fingerprint of the tokenizer that made them, where it is known."""

    vocab_size: int
    """Every id is below it."""


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
class CountsBytes(Protocol):
    """A tokenizer that knows how many bytes of text each of its ids stands for."""

    def byte_lengths(self) -> Integers:
        """(vocab_size,) bytes in UTF-8; 0 for marks, which are no text."""


@runtime_checkable
class KnowsPlaces(TextTokenizer, Protocol):
    """A tokenizer that knows which characters each token stands for."""

    def encode_places(self, text: str) -> tuple[TokenIds, Integers]:
        """The ids of a text, as ``encode_batch`` gives them, and their places: (n, 2), the first character of
        each and the one behind its last."""


@runtime_checkable
class MarksTexts(Protocol):
    """A tokenizer that is published with marks of its own around texts."""

    def prefix_ids(self) -> tuple[int, ...]:
        """The ids that it puts before a text where it is asked for special tokens; often none."""


@runtime_checkable
class RendersChats(Protocol):
    """A tokenizer that comes with a chat template."""

    def chat_template(self) -> str:
        """The source of the template.

        :raises DataError: where there is none.
        """

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        """The text of a conversation.

        :param ask: end with what an answer begins with; otherwise the text ends with the last message's own
            words, which are to be continued.
        :raises DataError: where there is no template, or it refuses the conversation.
        """


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
