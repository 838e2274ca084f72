"""What components of data give is compared with their contracts, and errors name the component and the method."""

from types import SimpleNamespace

import numpy as np
import pytest

from hekaton.data import Encoded, Whole
from hekaton.data.answers import documents_of, encoded_parts, ids_of, indices_at, parts_of, tokens_made
from hekaton.data.encoders import TextEncoder
from hekaton.data.feed import Source
from hekaton.data.order import Sequential
from hekaton.data.pieces import encode_pieces
from hekaton.data.row_makers import documents
from hekaton.data.rows import RowReader, Stream
from hekaton.errors import DataError

IDS = np.array([1, 2], np.int32)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda places: places[:1], r"\(1,\) of int64 for \(3,\) places"),
        (lambda places: places / 1, r"\(3,\) of float64"),
        (lambda places: places + 5, "document 5"),
        (lambda places: places - 1, "document -1"),
        (lambda places: None, r"\(\) of object"),
    ],
)
def test_an_order_gives_indices(answer, said):
    with pytest.raises(DataError, match=rf"^at\(\) of the order SimpleNamespace gave {said}"):
        indices_at(SimpleNamespace(at=answer), np.arange(3), documents=5)


def test_what_an_order_does_to_the_places_is_its_own():
    def at(places):
        places += 1
        return places

    places = np.arange(3)
    assert indices_at(SimpleNamespace(at=at), places, documents=5).tolist() == [1, 2, 3]
    assert places.tolist() == [0, 1, 2]


def test_a_dataset_gives_a_document_for_each_index():
    assert documents_of([], (text for text in "ab"), number=2) == ["a", "b"]
    with pytest.raises(DataError, match=r"^fetch\(\) of the dataset list gave 1 answers for 2"):
        documents_of([], ["a"], number=2)
    with pytest.raises(DataError, match=r"^fetch\(\) of the dataset list gave NoneType"):
        documents_of([], None, number=2)


def test_an_encoder_gives_encoded_parts():
    with pytest.raises(DataError, match=r"^encode\(\) of the encoder int gave 0 answers for 1"):
        encoded_parts(0, [], number=1)
    with pytest.raises(DataError, match=r"^encode\(\) of the encoder int gave ndarray"):
        encoded_parts(0, [Encoded(IDS), IDS], number=2)

    with pytest.raises(DataError, match=r"gave targets \(3,\) for ids \(2,\)"):
        encoded_parts(0, [Encoded(IDS, targets=np.ones(3, np.bool_))], number=1)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (None, "NoneType"),
        ([], "no last part"),
        (["text"], "str"),
        ([Whole("a", is_last=False)], "no last part"),
    ],
)
def test_an_encoder_cuts_documents_into_parts(cut, said):
    encoder = SimpleNamespace(cut=lambda document: cut)
    with pytest.raises(DataError, match=rf"^cut\(\) of the encoder SimpleNamespace gave {said}"):
        list(parts_of(encoder, "a"))
    cut = [Whole("a"), Whole("after the last")]
    assert list(parts_of(encoder, "a")) == cut[:1]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([IDS], "1 answers for 2"),
        (None, "NoneType"),
        ([IDS, IDS[None]], r"\(1, 2\) of int32"),
        ([IDS, IDS / 2], r"\(2,\) of float64"),
        ([IDS, IDS + 1], "the id 3"),
        ([IDS - 2, IDS], "the id -1"),
    ],
)
def test_a_tokenizer_gives_ids(answer, said):
    tokenizer = SimpleNamespace(vocab_size=3, encode_batch=lambda texts: answer)
    pieces = [piece for text in ("a", "b") for piece in TextEncoder(tokenizer).cut(text)]
    with pytest.raises(DataError, match=rf"^encode_batch\(\) of the tokenizer SimpleNamespace gave {said}"):
        encode_pieces(tokenizer, pieces)
    assert ids_of(tokenizer, [IDS, IDS[:0] / 1], number=2)[1].tolist() == []


@pytest.mark.parametrize("made", [None, -1, 2.0])
def test_a_row_maker_says_what_is_in_a_row(made):
    with pytest.raises(DataError, match=r"^make\(\) of the row maker SimpleNamespace gave "):
        tokens_made(SimpleNamespace(), made)


def test_a_row_maker_that_takes_and_makes_nothing_is_an_error(numbers, number_tokenizer):
    maker = documents(None, 4)
    maker.make = lambda feed, out: 0 * len(feed.take(4))
    held = numbers("1 2 3", "4 5 6 7 8 9")
    source = Source(held, TextEncoder(number_tokenizer()), Sequential(len(held)))
    reader = RowReader(Stream([source], maker, 1, repeat=True), [0], np.zeros((1, 2), np.int64))
    with pytest.raises(DataError, match="no row can be made of 1,003 documents one after the other"):
        reader.next()
