"""The same global batches on any number of ranks and workers, and after any resumption."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
import tracemalloc

import numpy as np
import pytest
import torch

from hekaton.data.byte import ByteTokenizer
from hekaton.data.loader import build_loader, check_identity
from hekaton.data.order import document_at
from hekaton.errors import DataError

ROWS, SEQ_LEN, SEED = 4, 7, 11
DOCUMENTS = 13
STEPS = 40
"""More than four epochs: documents have 12 tokens on average, a step has 28."""


@pytest.fixture
def documents(numbers):
    """Documents of 0 to 24 tokens; every token occurs once."""
    lengths, ids = random.Random(0), itertools.count()
    return numbers(
        *(" ".join(str(next(ids)) for _ in range(lengths.randrange(25))) for _ in range(DOCUMENTS))
    )


def loader(documents, tokenizer, rows, **options):
    return build_loader(
        documents, tokenizer, seq_len=SEQ_LEN, global_batch_size=ROWS, rows=rows, seed=SEED, **options
    )


def expected(texts, packing):
    """Every step's global batch, made the plain way: whole rows first, then cut."""
    rows = []
    for row in range(ROWS):
        tokens, documents = [], []
        for number in range(DOCUMENTS * 8):
            (index,) = document_at(np.array([number * ROWS + row]), documents=DOCUMENTS, seed=SEED)
            words = texts[index].split()
            ids = [998, *map(int, words), 999] if words else []
            tokens += ids
            documents += [number] * len(ids)
        rows.append((tokens, documents))
    steps = []
    for step in range(STEPS):
        batch = {"tokens": [], "labels": []} | ({"positions": []} if packing == "documents" else {})
        for tokens, documents in rows:
            places = range(step * SEQ_LEN, (step + 1) * SEQ_LEN)
            labels = [tokens[place + 1] for place in places]
            if packing == "documents":
                ends = [documents[place] != documents[place + 1] for place in places]
                labels = [-100 if end else label for label, end in zip(labels, ends, strict=True)]
                positions = []
                for place in places:
                    same = positions and documents[place - 1] == documents[place]
                    positions.append(positions[-1] + 1 if same else 0)
                batch["positions"].append(positions)
            batch["tokens"].append([tokens[place] for place in places])
            batch["labels"].append(labels)
        steps.append(batch)
    return steps


def global_batch(loaders):
    steps = [part.next_step() for part in loaders]
    return {name: torch.cat([step[name] for step in steps]).tolist() for name in steps[0]}


def split(ranks):
    share = ROWS // ranks
    return [range(rank * share, (rank + 1) * share) for rank in range(ranks)]


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (4, 0), (1, 1), (1, 3), (2, 2)])
def test_batches_are_equal_on_every_layout(documents, number_tokenizer, packing, ranks, workers):
    tokenizer = number_tokenizer(bos_id=998, eos_id=999)
    loaders = [
        loader(documents, tokenizer, rows, packing=packing, num_workers=workers) for rows in split(ranks)
    ]
    for number, batch in enumerate(expected(documents.texts, packing)):
        assert global_batch(loaders) == batch, number
    for part in loaders:
        part.close()


def test_reading_resumes_after_every_step_on_another_layout(documents, number_tokenizer):
    tokenizer = number_tokenizer(bos_id=998, eos_id=999)
    steps = expected(documents.texts, "documents")
    whole = loader(documents, tokenizer, range(ROWS))
    cursors = [whole.cursor()]
    for _ in steps:
        whole.next_step()
        cursors.append(whole.cursor())
    for done, ranks in itertools.product(range(STEPS), (1, 2, 4)):
        loaders = [loader(documents, tokenizer, rows) for rows in split(ranks)]
        for part, rows in zip(loaders, split(ranks), strict=True):
            part.seek(cursors[done][rows.start : rows.stop])
        assert torch.cat([part.cursor() for part in loaders]).equal(cursors[done])
        for number in range(done, min(done + 3, STEPS)):
            assert global_batch(loaders) == steps[number]
            assert torch.cat([part.cursor() for part in loaders]).equal(cursors[number + 1])


def test_workers_that_read_ahead_do_not_move_the_cursor(documents, number_tokenizer):
    tokenizer = number_tokenizer(bos_id=998, eos_id=999)
    steps = expected(documents.texts, "documents")
    here = loader(documents, tokenizer, range(ROWS))
    ahead = loader(documents, tokenizer, range(ROWS), num_workers=2, prefetch_factor=6)
    assert ahead.cursor().tolist() == [[0, 0]] * ROWS
    for _ in range(9):
        here.next_step()
        ahead.next_step()
        assert ahead.cursor().equal(here.cursor())
    cursor = ahead.cursor()
    ahead.close()
    here.seek(cursor)
    assert global_batch([here]) == steps[9]
    ahead.seek(cursor)  # with new workers
    assert global_batch([ahead]) == steps[9]
    ahead.close()
    assert global_batch([ahead]) == steps[10]  # a closed loader goes on where it was
    assert len(multiprocessing.active_children()) == 2
    ahead.close()
    assert multiprocessing.active_children() == []


def test_another_sequence_length_continues_with_the_next_token(documents, number_tokenizer):
    first = loader(documents, number_tokenizer(), range(ROWS), packing="concat")
    before = [first.next_step()["labels"][:, -1] for _ in range(3)][-1]
    longer = build_loader(
        documents, number_tokenizer(), seq_len=19, global_batch_size=ROWS, rows=range(ROWS), seed=SEED,
        packing="concat",
    )  # fmt: skip
    longer.seek(first.cursor())
    assert longer.next_step()["tokens"][:, 0].equal(before)


def test_every_document_and_token_once_in_one_pass(documents, number_tokenizer):
    options = {"repeat": False, "packing": "concat", "anything_left": lambda mine: True}
    parts = [loader(documents, number_tokenizer(), rows, **options) for rows in split(2)]
    labels, first = [], []
    for step in range(STEPS):
        for part in parts:
            batch = part.next_step()
            labels += batch["labels"][batch["labels"] >= 0].tolist()
            first += batch["tokens"][:, 0].tolist() if step == 0 else []
    assert sorted(documents.fetched) == list(range(DOCUMENTS))
    # The first token of each row, and then each token of it once as a label.
    every = [int(word) for text in documents.texts for word in text.split()]
    assert sorted(first + labels) == sorted(every)


def test_ranks_agree_on_the_last_step_of_one_pass(numbers, number_tokenizer):
    """Row 0 has 6 tokens, row 1 has 2: rank 1 goes on with padding until rank 0 is done."""
    documents = numbers("1 2 3", "1 2 3")
    told = []

    def anything_left(mine):
        told.append(mine)
        return len(told) < 3

    part = build_loader(
        documents, number_tokenizer(), seq_len=2, global_batch_size=4, rows=range(2, 4), seed=0, repeat=False,
        anything_left=anything_left,
    )  # fmt: skip
    for _ in range(2):
        assert part.next_step()["labels"].tolist() == [[-100, -100]] * 2
    with pytest.raises(StopIteration):
        part.next_step()
    assert told == [False] * 3


def test_one_pass_with_workers_that_end_at_different_steps(documents, number_tokenizer):
    def batches(workers):
        part = loader(documents, number_tokenizer(), range(ROWS), repeat=False, num_workers=workers)
        found = []
        while True:
            try:
                found.append(global_batch([part]))
            except StopIteration:
                part.close()
                return found

    assert batches(2) == batches(0)


def test_memory_does_not_grow_with_the_dataset():
    class Large:
        """A hundred million documents of 33,000 characters, and one in a thousand of 22 million."""

        fingerprint = "large"

        def __len__(self):
            return 100_000_000

        def fetch(self, indices):
            return ["some words\n" * (2_000_000 if index % 1000 == 0 else 3000) for index in indices]

    part = loader(Large(), ByteTokenizer(), range(ROWS))
    long = next(
        number
        for number in range(100_000)
        if document_at(np.array([number * ROWS]), documents=100_000_000, seed=SEED)[0] % 1000 == 0
    )
    part.seek(torch.tensor([[long, 0], [5, 0], [6, 0], [7, 0]]))
    tracemalloc.start()
    for _ in range(10):
        part.next_step()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 20e6 < peak < 35e6  # the one long text, but not its tokens, which are 88 MB


class Broken:
    fingerprint = "broken"

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 3

    def fetch(self, indices):
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_documents_is_shown_as_it_is(workers):
    error = DataError("cannot read 'a.txt': no such file", origin="run.toml, line 3", hint="look for it")
    part = loader(Broken(error), ByteTokenizer(), range(ROWS), num_workers=workers)
    with pytest.raises(DataError) as e:
        part.next_step()
    assert str(e.value) == str(error)
    part.close()


def test_any_other_error_in_a_worker_has_its_cause():
    part = loader(Broken(KeyError("text")), ByteTokenizer(), range(ROWS), num_workers=1)
    with pytest.raises(DataError, match="reading the data failed: KeyError: 'text'") as e:
        part.next_step()
    assert "test_loader.py" in e.value.origin
    assert "in fetch" in e.value.origin
    assert "raise self.error" in str(e.value.__cause__)
    part.close()


def test_an_error_of_one_worker_ends_the_others_at_once():
    class Slow(Broken):
        def fetch(self, indices):
            if torch.utils.data.get_worker_info().id == 1:
                time.sleep(60)
            raise self.error

    part = loader(Slow(DataError("cannot read it")), ByteTokenizer(), range(ROWS), num_workers=2)
    began = time.monotonic()
    with pytest.raises(DataError, match="cannot read it"):
        part.next_step()
    while multiprocessing.active_children() and time.monotonic() < began + 60:
        time.sleep(0.01)
    assert time.monotonic() < began + 4  # torch itself waits for 5 s


def test_a_worker_that_dies_is_an_error_where_its_rows_are_waited_for_and_nowhere_else(
    documents, number_tokenizer, tmp_path
):
    fetch = type(documents).fetch

    class Deadly(type(documents)):
        def fetch(self, indices):
            if (tmp_path / "die").exists():
                os._exit(9)
            return fetch(self, indices)

    documents.__class__ = Deadly
    part = loader(documents, number_tokenizer(), range(ROWS), num_workers=1)
    part.next_step()
    (tmp_path / "die").touch()
    with pytest.raises(DataError, match="a data worker died"):
        for _ in range(STEPS):
            part.next_step()
            time.sleep(0.05)  # it dies in one of these
    part.close()


def test_identity_names_what_differs(documents, number_tokenizer):
    saved = loader(documents, number_tokenizer(), range(ROWS)).identity()
    check_identity(saved, loader(documents, number_tokenizer(), range(2)).identity())
    other = build_loader(
        documents, number_tokenizer(fingerprint="x"), seq_len=5, global_batch_size=8, rows=range(8), seed=12,
        packing="concat",
    )  # fmt: skip
    with pytest.raises(DataError) as e:
        check_identity(saved, other.identity())
    assert str(e.value).splitlines() == [
        "the run cannot continue with the data of the checkpoint: the tokenizer differs, global_batch_size was 4 "
        "and is now 8, seed was 11 and is now 12, packing was documents and is now concat",
        "  set model.tokenizer and model.hf_assets_path back",
        "  set training.global_batch_size = 4",
        "  set debug.seed = 11",
        '  set training.packing = "documents"',
        '  or start the data over: checkpoint.exclude_from_loading = ["data_loader"]',
    ]


def test_other_documents_have_another_identity(documents, numbers, number_tokenizer):
    saved = loader(documents, number_tokenizer(), range(ROWS)).identity()
    documents.fingerprint = "other"
    with pytest.raises(DataError, match="the documents differ") as e:
        check_identity(saved, loader(documents, number_tokenizer(), range(ROWS)).identity())
    assert "set training.dataset and training.dataset_path back" in e.value.hint
