"""Rows of each row maker by hand, and the contracts of orders, encoders and row makers."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from hekaton.data import Encoded, Whole
from hekaton.data.encoders import IdsEncoder, TextEncoder
from hekaton.data.feed import Source
from hekaton.data.loader import build_loader
from hekaton.data.order import Sequential, Shuffled
from hekaton.data.row_makers import BestFit, InOrder, OnePerRow
from hekaton.data.rows import RowReader, Stream
from hekaton.errors import DataError
from hekaton.testing import check_encoder, check_order, check_row_maker
from hekaton.testing.data import _Held

X = -100
LENGTHS = [5, 2, 9, 1, 4, 30, 3, 0, 6, 7]


class Answers:
    """Encodes (question, answer), of which the answer is to be learned."""

    fingerprint = "answers"

    def cut(self, document):
        yield Whole(document)

    def encode(self, parts):
        return [
            Encoded(
                np.array([*question, *answer], np.int32),
                np.array([False] * len(question) + [True] * len(answer), np.bool_),
            )
            for question, answer in (part.content for part in parts)
        ]


def test_contracts(number_tokenizer):
    texts = [" ".join(str(100 * length + at) for at in range(length)) for length in LENGTHS]
    ids = [np.arange(length, dtype=np.int32) + 100 * length for length in LENGTHS]
    encoder = TextEncoder(number_tokenizer(bos_id=998, eos_id=999))
    for order in (Shuffled(17, 3), Sequential(17)):
        check_order(order, documents=17)
    check_encoder(encoder, texts)
    check_encoder(IdsEncoder(), ids)
    check_encoder(Answers(), [([1, 2], [3]), ([4], [5, 6])])
    for maker in (InOrder(8), InOrder(8, packs_documents=False), OnePerRow(8), BestFit(8)):
        check_row_maker(maker, texts, encoder)
        check_row_maker(maker, ids, IdsEncoder())


def test_the_checks_see_a_broken_contract():
    class Twice(Sequential):
        def at(self, places):
            return places // 2 % self.documents

    class Counting(IdsEncoder):
        def encode(self, parts):
            return [Encoded(part.ids + len(parts)) for part in parts]

    class Forgetful(BestFit):
        cursor_width = 2

    class Stuck(InOrder):
        def make(self, feed, out):
            return 8

    class OneRowMore(InOrder):
        def empty(self, rows):
            return super().empty(rows + 1)

    ids = [np.arange(length, dtype=np.int32) for length in LENGTHS]
    for members, message in (
        ({"unit": ""}, "whose unit is '', not a text"),
        ({"units_per_row": 0}, "whose units_per_row is 0, not above 0"),
        ({"ahead": 1.5}, "whose ahead is 1.5, not a whole number"),
        ({"cursor_width": 4}, "its cursor_width is 4, not 2 or 3"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_row_maker(type("Odd", (InOrder,), members)(8), ids, IdsEncoder())
    with pytest.raises(AssertionError, match=r"make\(\) takes nothing from its feed"):
        check_row_maker(Stuck(8), ids, IdsEncoder())
    with pytest.raises(AssertionError, match=r"has shape \(2, 8\) for a row and \(3, 8\) for two"):
        check_row_maker(OneRowMore(8), ids, IdsEncoder())
    for encode, message in (
        (lambda self, parts: [part.content for part in parts], "encoded to ndarray, not to Encoded"),
        (lambda self, parts: [Encoded([1, 2]) for _ in parts], "ids are list, not an array"),
        (lambda self, parts: [Encoded(np.array([-1])) for _ in parts], "an id is below 0"),
        (lambda self, parts: [Encoded(part.content[:, None] * 0.5) if len(part.content) else Encoded(
            part.content) for part in parts], r"units are .* in one document"),
    ):  # fmt: skip
        with pytest.raises(AssertionError, match=message):
            check_encoder(type("Odd", (Answers,), {"encode": encode})(), ids)
    with pytest.raises(AssertionError, match="whose fingerprint is None, not a text"):
        check_encoder(type("Odd", (IdsEncoder,), {"fingerprint": None})(), ids)
    with pytest.raises(AssertionError, match="its fingerprint differs each time"):
        calls = count()
        changing = property(lambda self: f"call {next(calls)}")
        check_encoder(type("Odd", (IdsEncoder,), {"fingerprint": changing})(), ids)
    with pytest.raises(AssertionError, match="each document once"):
        check_order(Twice(17), documents=17)
    with pytest.raises(AssertionError, match="encoded together"):
        check_encoder(Counting(), ids)
    with pytest.raises(AssertionError, match="differs when resumed after 1 rows"):
        check_row_maker(Forgetful(8), ids, IdsEncoder())


def rows_of(maker, documents, encoder, count):
    class Held:
        fingerprint = "held"

        def __len__(self):
            return len(documents)

        def fetch(self, indices):
            return [documents[index] for index in indices]

    loader = build_loader(
        Held(), None, seq_len=maker.seq_len, global_batch_size=1, rows=range(1), seed=0, maker=maker,
        encoder=encoder, order=Sequential(len(documents)), repeat=False,
    )  # fmt: skip
    steps = [loader.next_step() for _ in range(count)]
    with pytest.raises(StopIteration):
        loader.next_step()
    return [{name: tensor[0].tolist() for name, tensor in step.items()} for step in steps]


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch):
    monkeypatch.setattr("hekaton.data.loader.identity_of", lambda *arguments, **settings: {})


def test_only_targets_have_labels():
    pairs = [([1, 2], [3, 4]), ([5], [6]), ([7, 8], [9])]
    (row,) = rows_of(InOrder(9), pairs, Answers(), 1)
    assert row["tokens"] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert row["labels"] == [X, 3, 4, X, 6, X, X, 9, X]
    assert row["positions"] == [0, 1, 2, 3, 0, 1, 0, 1, 2]
    # Joined to one text, what a question begins with is no target either; a target may begin a row.
    first, second = rows_of(InOrder(3, packs_documents=False), pairs[:2], Answers(), 2)
    assert (first["tokens"], first["labels"]) == ([1, 2, 3], [X, 3, 4])
    assert (second["tokens"], second["labels"]) == ([4, 5, 6], [X, 6, X])


def test_one_document_in_each_row():
    ids = [np.arange(1, 4), np.arange(10, 11), np.arange(20, 30), np.arange(40, 44)]
    rows = rows_of(OnePerRow(4), ids, IdsEncoder(), 3)
    assert [row["tokens"] for row in rows] == [[1, 2, 3, 0], [20, 21, 22, 23], [40, 41, 42, 43]]
    assert [row["labels"] for row in rows] == [[2, 3, X, X], [21, 22, 23, 24], [41, 42, 43, X]]
    assert [row["positions"] for row in rows] == [[0, 1, 2, 0], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_documents_of_which_a_row_would_learn_nothing_are_skipped():
    """Cut off before what is to be learned, or of one token; more of them than are read at once."""
    long, short = ([1, 2, 3, 4, 5], [6]), ([7], [])
    pairs = [long, *[short] * 9, ([1, 2, 3, 4], [5, 6]), *[long] * 3, ([8], [9])]
    documents = Source(_Held(pairs), Answers(), Sequential(len(pairs)))
    reader = RowReader(Stream([documents], OnePerRow(4), 1, repeat=True), [0], np.zeros((1, 2), np.int64))
    steps = [reader.next() for _ in range(3)]
    assert [step.tensors["tokens"][0].tolist() for step in steps] == [
        [1, 2, 3, 4],
        [8, 9, 0, 0],
        [1, 2, 3, 4],
    ]
    assert [step.tensors["labels"][0].tolist() for step in steps] == [
        [X, X, X, 5],
        [9, X, X, X],
        [X, X, X, 5],
    ]
    assert [step.skipped for step in steps] == [10, 3, 10]

    nothing = Source(_Held([long, short]), Answers(), Sequential(2), name="web")
    reader = RowReader(Stream([nothing], OnePerRow(4), 2, repeat=True), [0, 1], np.zeros((2, 2), np.int64))
    with pytest.raises(DataError, match=r"source 'web': no row can be made of 1,0\d\d documents one after"):
        reader.next()


def test_best_fit_cuts_no_document_that_fits():
    # Longest first: 5, 5, 4, 3, 2 in rows of 6: nothing fits beside the fives; 4 and 2 fill a row.
    ids = [
        np.arange(start, start + length) for start, length in ((10, 3), (20, 5), (30, 2), (40, 4), (50, 5))
    ]
    rows = rows_of(BestFit(6), ids, IdsEncoder(), 4)
    assert [row["tokens"] for row in rows] == [
        [20, 21, 22, 23, 24, 0], [50, 51, 52, 53, 54, 0], [40, 41, 42, 43, 30, 31], [10, 11, 12, 0, 0, 0],
    ]  # fmt: skip
    assert rows[2]["labels"] == [41, 42, 43, X, 31, X]
    assert rows[2]["positions"] == [0, 1, 2, 3, 0, 1]
    assert rows[3]["positions"] == [0, 1, 2, 0, 1, 2]


def test_best_fit_cuts_what_is_longer_than_a_row():
    rows = rows_of(BestFit(4), [np.arange(10, 16), np.arange(20, 22)], IdsEncoder(), 2)
    assert [row["tokens"] for row in rows] == [[10, 11, 12, 13], [14, 15, 20, 21]]
    assert [row["labels"] for row in rows] == [[11, 12, 13, 14], [15, X, 21, X]]


class Readings:
    """A document is one unit: a column of measured numbers, or nothing."""

    fingerprint = "readings"

    def cut(self, document):
        yield Whole(document)

    def encode(self, parts):
        return [Encoded(np.array(part.content, np.float32).reshape(-1, 3)) for part in parts]


class ReadingRows:
    """Numbers in place of tokens, with one value for each row."""

    unit, units_per_row, ahead, cursor_width = "readings", 1, 1, 2

    def empty(self, rows):
        return {"values": np.zeros((rows, 3), np.float32), "present": np.zeros(rows, np.float32)}

    def make(self, feed, out):
        spans = feed.take(1)
        if spans:
            out["values"][...], out["present"][...] = spans[0].ids[0], 1
        return len(spans)


def test_rows_of_numbers_that_are_no_tokens():
    documents = [[1.5, 2, 3], [], [4, 5.25, 6], [7, 8, 9.75]]
    check_encoder(Readings(), documents)
    check_row_maker(ReadingRows(), [document for document in documents if document], Readings())
    source = Source(_Held(documents), Readings(), Sequential(4), epochs=1)
    reader = RowReader(Stream([source], ReadingRows(), 2, repeat=False), [0, 1], np.zeros((2, 2), np.int64))
    steps = [reader.next() for _ in range(2)]
    assert [step.tensors["values"].tolist() for step in steps] == [
        [[1.5, 2, 3], [7, 8, 9.75]],
        [[4, 5.25, 6], [0, 0, 0]],
    ]
    assert steps[1].tensors["present"].tolist() == [1, 0]
    assert steps[0].skipped + steps[1].skipped == 1
