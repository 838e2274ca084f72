"""Sequences of hand-made documents, with every token, label and position written by hand."""

from __future__ import annotations

import pytest
import torch

from hekaton.data.loader import build_loader
from hekaton.errors import DataError

pytestmark = pytest.mark.usefixtures("in_order")
X = -100


def lists(step):
    return {name: values.tolist() for name, values in step.items()}


def test_documents_are_kept_apart(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2 3", "4 5", "6", "7 8 9"), number_tokenizer(),
        seq_len=4, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    assert lists(loader.next_step()) == {
        "tokens": [[1, 2, 3, 4]],
        "labels": [[2, 3, X, 5]],
        "positions": [[0, 1, 2, 0]],
    }
    assert loader.cursor().tolist() == [[1, 1]]
    assert lists(loader.next_step()) == {
        "tokens": [[5, 6, 7, 8]],
        "labels": [[X, X, 8, 9]],
        "positions": [[0, 0, 0, 1]],
    }
    assert loader.cursor().tolist() == [[3, 2]]
    assert lists(loader.next_step()) == {  # the second epoch begins
        "tokens": [[9, 1, 2, 3]],
        "labels": [[X, 2, 3, X]],
        "positions": [[0, 0, 1, 2]],
    }
    assert loader.cursor().tolist() == [[5, 0]]


def test_documents_are_joined_with_begin_and_end_marks(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2", "3"), number_tokenizer(bos_id=100, eos_id=200),
        seq_len=4, global_batch_size=1, rows=range(1), seed=0, packing="concat",
    )  # fmt: skip
    assert lists(loader.next_step()) == {"tokens": [[100, 1, 2, 200]], "labels": [[1, 2, 200, 100]]}
    assert loader.cursor().tolist() == [[1, 0]]
    assert lists(loader.next_step()) == {"tokens": [[100, 3, 200, 100]], "labels": [[3, 200, 100, 1]]}
    assert loader.cursor().tolist() == [[2, 1]]


def test_marks_are_kept_with_documents_kept_apart(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2", "3"), number_tokenizer(bos_id=100, eos_id=200),
        seq_len=6, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    assert lists(loader.next_step()) == {
        "tokens": [[100, 1, 2, 200, 100, 3]],
        "labels": [[1, 2, 200, X, 3, 200]],
        "positions": [[0, 1, 2, 3, 0, 1]],
    }


@pytest.mark.parametrize(("bos", "eos", "expected"), [(100, None, [100, 1, 100]), (None, 200, [1, 200, 2])])
def test_a_tokenizer_with_one_mark(numbers, number_tokenizer, bos, eos, expected):
    loader = build_loader(
        numbers("1", "2"), number_tokenizer(bos_id=bos, eos_id=eos),
        seq_len=3, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    assert loader.next_step()["tokens"].tolist() == [expected]


def test_a_long_document_continues_and_positions_restart_with_the_sequence(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2 3 4 5 6 7 8", "9"), number_tokenizer(),
        seq_len=3, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    steps = [lists(loader.next_step()) for _ in range(3)]
    assert [step["tokens"] for step in steps] == [[[1, 2, 3]], [[4, 5, 6]], [[7, 8, 9]]]
    assert [step["labels"] for step in steps] == [[[2, 3, 4]], [[5, 6, 7]], [[8, X, X]]]
    assert [step["positions"] for step in steps] == [[[0, 1, 2]], [[0, 1, 2]], [[0, 1, 0]]]


def test_each_row_reads_its_own_documents(numbers, number_tokenizer):
    documents = numbers("1 2", "10 20", "3 4", "30 40", "5 6")
    loader = build_loader(
        documents, number_tokenizer(), seq_len=4, global_batch_size=2, rows=range(2), seed=0, packing="concat"
    )
    # Places 0 2 4 6 8 and 1 3 5 7 9 of the endless sequence: the second epoch begins at place 5.
    assert loader.next_step()["tokens"].tolist() == [[1, 2, 3, 4], [10, 20, 30, 40]]
    assert loader.next_step()["tokens"].tolist() == [[5, 6, 10, 20], [1, 2, 3, 4]]


def test_documents_without_tokens_are_skipped_with_their_marks(numbers, number_tokenizer):
    loader = build_loader(
        numbers("", "1", "  ", ""), number_tokenizer(bos_id=100),
        seq_len=4, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    assert loader.next_step()["tokens"].tolist() == [[100, 1, 100, 1]]
    assert loader.cursor().tolist() == [[9, 0]]


def test_a_row_of_empty_documents_waits_for_its_turn(numbers, number_tokenizer):
    """Row 1 of 2 meets no token in its first five documents, then one at place 11: it must not give up."""
    loader = build_loader(
        numbers("", "", "5 6", *[""] * 6), number_tokenizer(),
        seq_len=2, global_batch_size=2, rows=range(1, 2), seed=0, packing="concat",
    )  # fmt: skip
    assert loader.next_step()["tokens"].tolist() == [[5, 6]]
    assert loader.cursor().tolist() == [[14, 0]]  # places 11 and 29 are row 1's numbers 5 and 14


@pytest.mark.parametrize("repeat", [True, False])
def test_only_empty_documents_are_an_error(numbers, number_tokenizer, repeat):
    loader = build_loader(
        numbers("", " ", ""), number_tokenizer(bos_id=100, eos_id=200),
        seq_len=2, global_batch_size=2, rows=range(2), seed=0, repeat=repeat,
    )  # fmt: skip
    with pytest.raises(DataError, match="the dataset is empty: none of its 3 documents has tokens"):
        loader.next_step()


def test_an_empty_dataset_is_an_error(numbers, number_tokenizer):
    with pytest.raises(DataError, match="the dataset is empty: it has no documents"):
        build_loader(numbers(), number_tokenizer(), seq_len=2, global_batch_size=1, rows=range(1), seed=0)


def test_one_pass_pads_what_is_left(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2 3", "10", "4 5 6"), number_tokenizer(),
        seq_len=4, global_batch_size=2, rows=range(2), seed=0, repeat=False,
    )  # fmt: skip
    # A token alone (row 1, and what is left of row 0 after two sequences) predicts nothing and is left out.
    assert lists(loader.next_step()) == {
        "tokens": [[1, 2, 3, 4], [0, 0, 0, 0]],
        "labels": [[2, 3, X, 5], [X, X, X, X]],
        "positions": [[0, 1, 2, 0], [0, 1, 2, 3]],
    }
    assert lists(loader.next_step()) == {
        "tokens": [[5, 6, 0, 0], [0, 0, 0, 0]],
        "labels": [[6, X, X, X], [X, X, X, X]],
        "positions": [[0, 1, 0, 1], [0, 1, 2, 3]],
    }
    for _ in range(2):
        with pytest.raises(StopIteration):
            loader.next_step()


def test_pieces_of_a_long_document_are_one_document(numbers, number_tokenizer, monkeypatch):
    monkeypatch.setattr("hekaton.data.pieces.PIECE", 8)
    monkeypatch.setattr("hekaton.data.feed.PIECE", 8)
    text = " ".join(str(number) for number in range(1, 30))
    loader = build_loader(
        numbers(text, "77"), number_tokenizer(bos_id=100, eos_id=200),
        seq_len=31, global_batch_size=1, rows=range(1), seed=0,
    )  # fmt: skip
    step = lists(loader.next_step())
    assert step["tokens"] == [[100, *range(1, 30), 200]]
    assert step["labels"] == [[*range(1, 30), 200, X]]
    assert step["positions"] == [list(range(31))]
    assert lists(loader.next_step())["tokens"][0][:4] == [100, 77, 200, 100]

    loader.seek(cursor(0, 12))
    assert loader.next_step()["tokens"].tolist() == [[*range(12, 30), 200, 100, 77, 200, 100, *range(1, 9)]]


def test_a_row_resumes_in_any_piece(numbers, number_tokenizer, monkeypatch):
    monkeypatch.setattr("hekaton.data.pieces.PIECE", 8)
    monkeypatch.setattr("hekaton.data.feed.PIECE", 8)

    def loader():
        return build_loader(
            numbers(" ".join(str(number) for number in range(1, 30))), number_tokenizer(),
            seq_len=3, global_batch_size=1, rows=range(1), seed=0,
        )  # fmt: skip

    through = loader()
    for done in range(3, 27, 3):
        through.next_step()
        assert through.cursor().tolist() == [[0, done]]
        resumed = loader()
        resumed.seek(through.cursor())
        assert resumed.next_step()["tokens"].tolist() == [[done + 1, done + 2, done + 3]]


def test_a_long_document_is_encoded_as_it_is_needed(numbers, number_tokenizer, monkeypatch):
    monkeypatch.setattr("hekaton.data.pieces.PIECE", 100)
    monkeypatch.setattr("hekaton.data.feed.PIECE", 100)
    tokenizer = number_tokenizer()
    encoded = []
    encode = tokenizer.encode_batch
    tokenizer.encode_batch = lambda texts: encoded.extend(map(len, texts)) or encode(texts)
    loader = build_loader(
        numbers("1 " * 10_000), tokenizer, seq_len=20, global_batch_size=1, rows=range(1), seed=0
    )
    loader.next_step()
    assert encoded == [100]
    loader.next_step()
    loader.next_step()
    assert encoded == [100, 100]


def test_documents_that_changed_since_the_checkpoint_are_an_error(numbers, number_tokenizer):
    loader = build_loader(
        numbers("1 2 3"), number_tokenizer(), seq_len=2, global_batch_size=1, rows=range(1), seed=0
    )
    loader.seek(cursor(0, 3))
    with pytest.raises(DataError, match=r"row 0 .*: its cursor lies beyond the end of its document 0") as e:
        loader.next_step()
    assert 'checkpoint.exclude_from_loading = ["data_loader"]' in str(e.value)


def cursor(*place):
    return torch.tensor([place])
