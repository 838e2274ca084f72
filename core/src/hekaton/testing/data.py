"""Do a dataset, a tokenizer, an order, an encoder and a row maker keep their contracts?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hekaton.components import missing_members, wrong_value
from hekaton.data import DocumentEncoder, DocumentOrder, Documents, Encoded, TextTokenizer
from hekaton.data.feed import Source
from hekaton.data.order import Sequential
from hekaton.data.row_makers import BatchRowMaker
from hekaton.data.rows import RowReader, Sequences, Stream


def check_tokenizer(tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
    """Encode texts together and alone, and decode them.

    Ids are whole numbers from 0 below ``vocab_size``, without the marks of a document around them, and those
    of a text do not depend on the texts beside it. What decodes need not be the text: a tokenizer may
    normalise.

    :raises AssertionError: saying what is wrong.
    """
    _check_members(TextTokenizer, tokenizer)
    for name in ("bos_id", "eos_id"):
        mark = getattr(tokenizer, name)
        assert mark is None or 0 <= mark < tokenizer.vocab_size, f"{name} = {mark} is no id below vocab_size"
    together = tokenizer.encode_batch(list(texts))
    assert len(together) == len(texts), f"{len(together)} answers for {len(texts)} texts"
    for text, ids in zip(texts, together, strict=True):
        what = f"the ids of {text[:20]!r}"
        right = isinstance(ids, np.ndarray) and ids.ndim == 1 and np.issubdtype(ids.dtype, np.integer)
        assert right, f"{what} are no array of whole numbers in one dim: {ids!r}"
        if len(ids):
            assert 0 <= ids.min() <= ids.max() < tokenizer.vocab_size, f"{what} are not all below vocab_size"
            for mark, place in ((tokenizer.bos_id, 0), (tokenizer.eos_id, -1)):
                assert mark is None or ids[place] != mark, f"{what} have a mark at an end: encoders add marks"
        (alone,) = tokenizer.encode_batch([text])
        assert np.array_equal(alone, ids), f"{what} depend on what is encoded together"
        decoded = tokenizer.decode([int(one) for one in ids])
        assert isinstance(decoded, str), f"decode() returned {type(decoded).__name__}"


def check_dataset(dataset: Documents, encoder: DocumentEncoder) -> None:
    """Fetch documents in any order and together, and compare what they are encoded to.

    :param encoder: of the record, ``Dataset(..., encoder=...)``, built.
    :raises AssertionError: saying what is wrong.
    """
    _check_members(Documents, dataset)
    count = len(dataset)
    assert count > 0, "it has no documents"
    wanted = [index % count for index in (count - 1, 0, count // 2, 0)]
    fetched = dataset.fetch(wanted)
    assert isinstance(fetched, list), f"fetch() returned {type(fetched).__name__}, not a list"
    assert len(fetched) == len(wanted), f"fetch() gave {len(fetched)} documents for {len(wanted)}"
    for index, document in zip(wanted, fetched, strict=True):
        found = [encoder.encode(list(encoder.cut(one))) for one in (document, *dataset.fetch([index]))]
        same = all(np.array_equal(some.ids, other.ids) for some, other in zip(*found, strict=True))
        assert same, f"document {index} differs when it is fetched alone"


def _check_members(protocol: type, built: Any) -> None:
    missing = missing_members(protocol, built)
    assert not missing, f"{type(built).__name__} has no {', '.join(missing)}"
    wrong = wrong_value(protocol, built)
    assert not wrong, f"{type(built).__name__}, {wrong}"
    if hasattr(built, "fingerprint"):
        assert built.fingerprint == built.fingerprint, "its fingerprint differs each time"


def check_order(order: DocumentOrder, *, documents: int, epochs: int = 3) -> None:
    """Check that an order has each document once in an epoch, whatever places are asked for together.

    :param documents: the number that it was built for.
    :raises AssertionError: saying what is wrong.
    """
    places = np.arange(documents * epochs)
    found = order.at(places)
    assert found.shape == places.shape, f"{found.shape} documents at {places.shape} places"
    for epoch in range(epochs):
        of_epoch = np.sort(found[epoch * documents : (epoch + 1) * documents])
        assert np.array_equal(of_epoch, np.arange(documents)), (
            f"epoch {epoch} has not each document once: {of_epoch[:20]}"
        )
    some = places[::-3]
    assert np.array_equal(order.at(some), found[some]), (
        "a document depends on the places that are asked for together"
    )


def check_encoder(encoder: DocumentEncoder, documents: Sequence[Any]) -> None:
    """Check an encoder on documents: its fingerprint, their parts, and that tokens do not depend on what is
    encoded together. Units of another kind than tokens have one shape and type in all documents.

    :raises AssertionError: saying what is wrong.
    """
    _check_members(DocumentEncoder, encoder)
    parts = [list(encoder.cut(document)) for document in documents]
    for number, of_document in enumerate(parts):
        assert of_document, f"document {number} has no part"
        places = [(part.is_first, part.is_last) for part in of_document]
        last = len(places) - 1
        assert places == [(at == 0, at == last) for at in range(last + 1)], (
            f"is_first and is_last of document {number} are {places}"
        )
        assert all(part.size >= 0 for part in of_document), f"a part of document {number} has no size"
    flat = [part for of_document in parts for part in of_document]
    together = encoder.encode(flat)
    assert len(together) == len(flat), f"{len(together)} answers for {len(flat)} parts"
    learned = [one for one in together if isinstance(one, Encoded) and one.targets is not None]
    if together and len(learned) == len(together):
        assert any(np.any(one.targets) for one in learned), "no document has a target: nothing is learned"
    for part, encoded in zip(flat, together, strict=True):
        assert isinstance(encoded, Encoded), f"a part is encoded to {type(encoded).__name__}, not to Encoded"
        assert isinstance(encoded.ids, np.ndarray), f"ids are {type(encoded.ids).__name__}, not an array"
        assert encoded.ids.ndim, "ids are a single number"
        unit, first = (encoded.ids.shape[1:], encoded.ids.dtype), together[0].ids
        assert unit == (first.shape[1:], first.dtype), (
            f"units are {unit[0]} of {unit[1]} in one document, {first.shape[1:]} of {first.dtype} in another"
        )
        if encoded.ids.ndim == 1:  # of tokens; what has more dimensions is of units of another kind
            assert np.issubdtype(encoded.ids.dtype, np.integer), f"ids are {encoded.ids.dtype}"
            assert not len(encoded.ids) or encoded.ids.min() >= 0, "an id is below 0"
        (alone,) = encoder.encode([part])
        assert np.array_equal(alone.ids, encoded.ids), "ids depend on what is encoded together"
        if encoded.targets is None:
            continue
        assert encoded.targets.shape == encoded.ids.shape[:1], "targets have another shape than ids"
        assert encoded.targets.dtype == np.bool_, f"targets are {encoded.targets.dtype}, not bool"
        assert alone.targets is not None, "targets depend on what is encoded together"
        assert np.array_equal(alone.targets, encoded.targets), "targets depend on what is encoded together"


def check_row_maker(
    maker: BatchRowMaker, documents: Sequence[Any], encoder: DocumentEncoder, *, rows: int = 3, steps: int = 6
) -> None:
    """Check that a row maker says what it counts, and gives the same rows whoever reads them, and from any
    cursor on.

    :param documents: some of which have tokens.
    :raises AssertionError: saying what is wrong.
    """
    _check_declared(maker)
    source = Source(_Held(documents), encoder, Sequential(len(documents)))
    stream = Stream([source], maker, rows, repeat=True)
    whole = RowReader(stream, range(rows), np.zeros((rows, maker.cursor_width), np.int64))
    made = [whole.next() for _ in range(steps)]
    for name, tensor in maker.empty(rows).items():
        assert made[0].tensors[name].shape == tensor.shape, f"'{name}' has another shape than in empty()"
    assert made[0].left, "no row could be made of these documents"
    for row in range(rows):
        alone = RowReader(stream, [row], np.zeros((1, maker.cursor_width), np.int64))
        for step in made:
            _compare(alone.next(), step, row, "read alone")
        for done in range(1, steps):
            resumed = RowReader(stream, [row], made[done - 1].cursor[row : row + 1])
            for step in made[done:]:
                _compare(resumed.next(), step, row, f"resumed after {done} rows")
    moved = made[-1].cursor.any(axis=1)
    assert moved.all(), f"after {steps} rows the cursor is where it was: make() takes nothing from its feed"


def _check_declared(maker: BatchRowMaker) -> None:
    _check_members(BatchRowMaker, maker)
    assert maker.cursor_width in (2, 3), f"its cursor_width is {maker.cursor_width}, not 2 or 3"
    one, two = maker.empty(1), maker.empty(2)
    assert one.keys() == two.keys(), f"empty() gives {sorted(one)} for a row and {sorted(two)} for two"
    for name, tensor in two.items():
        assert isinstance(tensor, np.ndarray), f"'{name}' of empty() is {type(tensor).__name__}, not an array"
        shapes = (one[name].shape, tensor.shape)
        assert shapes == ((1, *tensor.shape[1:]), (2, *tensor.shape[1:])), (
            f"'{name}' of empty() has shape {shapes[0]} for a row and {shapes[1]} for two"
        )


@dataclass
class _Held:
    """Documents in memory."""

    documents: Sequence[Any]
    fingerprint: str = "in memory"

    def __len__(self) -> int:
        return len(self.documents)

    def fetch(self, indices: Sequence[int]) -> list[Any]:
        return [self.documents[index] for index in indices]


def _compare(found: Sequences, expected: Sequences, row: int, how: str) -> None:
    for name, values in expected.tensors.items():
        assert np.array_equal(found.tensors[name][0], values[row]), (
            f"'{name}' of row {row} differs when {how}"
        )
    assert np.array_equal(found.cursor[0], expected.cursor[row]), (
        f"the cursor of row {row} differs when {how}"
    )
