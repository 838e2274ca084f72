"""What the components of data answer, compared with their contracts before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from hekaton.data import (
    DocumentEncoder,
    DocumentOrder,
    Documents,
    Encoded,
    Integers,
    Part,
    TextTokenizer,
    TokenIds,
)
from hekaton.errors import DataError

if TYPE_CHECKING:
    from hekaton.data.row_makers import BatchRowMaker

_PARTS = "parts, with size, is_first and is_last, of which one is the last"


def indices_at(order: DocumentOrder, places: Integers, *, documents: int) -> Integers:
    """The documents at places of an order, of so many documents.

    :raises DataError: for anything else than an index for each place.
    """
    found = np.asarray(order.at(places.copy()))
    if found.shape != places.shape or found.dtype.kind not in "iu":
        wrong = f"{found.shape} of {found.dtype} for {places.shape} places"
    elif len(found) and not 0 <= found.min() <= found.max() < documents:
        wrong = f"document {found[(found < 0) | (found >= documents)][0]}"
    else:
        return found
    raise _error(
        "at()", "order", order, wrong, f"the index of a document, below {documents:,}, for each place"
    )


def documents_of(dataset: Documents, fetched: Any, *, number: int) -> list[Any]:
    """So many documents that were fetched.

    :raises DataError: for another number of them.
    """
    found = _listed(fetched, number)
    if isinstance(found, str):
        raise _error("fetch()", "dataset", dataset, found, "a document for each index")
    return found


def parts_of(encoder: DocumentEncoder, document: Any) -> Iterator[Part]:
    """The parts that a document is cut into, up to the last one.

    :raises DataError: for what is no part, and for an end before a last one.
    """
    cut = encoder.cut(document)
    for part in cut if isinstance(cut, Iterable) else (cut,):
        if any(not hasattr(part, name) for name in ("size", "is_first", "is_last")):
            raise _error("cut()", "encoder", encoder, type(part).__name__, _PARTS)
        yield part
        if part.is_last:
            return
    raise _error("cut()", "encoder", encoder, "no last part", _PARTS)


def encoded_parts(encoder: DocumentEncoder, encoded: Any, *, number: int) -> list[Encoded]:
    """What so many parts were encoded to.

    :raises DataError: for anything else than an ``Encoded`` for each.
    """
    found = _listed(encoded, number)
    if not isinstance(found, str):
        wrong = next(filter(None, map(_wrong_part, found)), None)
        if wrong is None:
            return found
        found = wrong
    raise _error("encode()", "encoder", encoder, found, "an Encoded for each part")


def _wrong_part(encoded: Any) -> str:
    if not isinstance(encoded, Encoded):
        return type(encoded).__name__
    if encoded.targets is not None and encoded.targets.shape != encoded.ids.shape[:1]:
        return f"targets {encoded.targets.shape} for ids {encoded.ids.shape}"
    return ""


def ids_of(tokenizer: TextTokenizer, encoded: Any, *, number: int) -> list[TokenIds]:
    """The ids of so many texts.

    :raises DataError: for anything else than ids of the tokenizer for each.
    """
    size = tokenizer.vocab_size
    found = _listed(encoded, number)
    wrong = found if isinstance(found, str) else ""
    for ids in () if wrong else map(np.asarray, found):
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
            wrong = f"{ids.shape} of {ids.dtype}"
        elif len(ids) and not 0 <= ids.min() <= ids.max() < size:
            wrong = f"the id {ids[(ids < 0) | (ids >= size)][0]}"
    if wrong:
        expected = f"whole numbers below vocab_size = {size:,}, (n,), for each text"
        raise _error("encode_batch()", "tokenizer", tokenizer, wrong, expected)
    assert not isinstance(found, str)
    return found


def tokens_made(maker: BatchRowMaker, made: Any) -> int:
    """The tokens that a row maker has put into a row.

    :raises DataError: for anything else than a number of them.
    """
    if isinstance(made, Integral) and int(made) >= 0:
        return int(made)
    raise _error("make()", "row maker", maker, repr(made), "the number of tokens in the row, from 0 on")


def _listed(answer: Any, number: int) -> list[Any] | str:
    """The answers, or what is wrong with them."""
    if not isinstance(answer, Iterable):
        return type(answer).__name__
    found = list(answer)
    return found if len(found) == number else f"{len(found):,} answers for {number:,}"


def _error(method: str, kind: str, component: Any, wrong: str, expected: str) -> DataError:
    return DataError(
        f"{method} of the {kind} {type(component).__name__} gave {wrong}", hint=f"it gives {expected}"
    )
