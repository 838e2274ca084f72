"""Documents of mapped files are read many at once: rows and cursors are those of reading one after the other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from hekaton.corpus.tokens import MappedIds, TokenFiles
from hekaton.data import blocks, feed, jump
from hekaton.data.blend import Blend
from hekaton.data.contents import known_file
from hekaton.data.encoders import IdsEncoder
from hekaton.data.feed import Source
from hekaton.data.jump import cursor_after
from hekaton.data.loader import Loader
from hekaton.data.order import Sequential, Shuffled
from hekaton.data.row_makers import BestFit, InOrder, OnePerRow
from hekaton.data.rows import RowReader, Stream
from hekaton.errors import DataError

STEPS = {1: 12, 8: 36, 50: 12}
LENGTHS = [3, 0, 1, 1, 40, 5, 0, 0, 2, 120, 7, 1, 33, 4, 6, 2, 9]


class OneByOne:
    """The same documents, of a dataset that cannot join them."""

    def __init__(self, files):
        self._files, self.fingerprint = files, files.fingerprint

    def __len__(self):
        return len(self._files)

    def fetch(self, indices):
        return self._files.fetch(indices)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of documents, among them empty ones, and some that count as long."""
    monkeypatch.setattr(jump, "_FEWEST", 2)
    monkeypatch.setattr("hekaton.data.encoders.IDS_PART", 32)
    monkeypatch.setattr(feed, "IDS_PART", 32)
    monkeypatch.setattr(feed, "JOINED_TOKENS", 12)
    monkeypatch.setattr(feed, "_PLACES", 10)
    mapped, first = [], 1
    for name, lengths, dtype in (("a", LENGTHS, "<u2"), ("b", LENGTHS[::-1][:9], "<u4")):
        ids = np.arange(first, first + sum(lengths)).astype(dtype)
        first += len(ids)
        ids.tofile(tmp_path / f"{name}.bin")
        np.cumsum(lengths).astype("<i8").tofile(tmp_path / f"{name}.ends")
        mapped.append(MappedIds(tmp_path / f"{name}.bin", dtype, len(ids), len(lengths),
                                ends=tmp_path / f"{name}.ends"))  # fmt: skip
    known = {file: known_file(file) for one in mapped for file in (one.file, one.ends)}
    return TokenFiles(mapped, known=known, identity="files", contents={})


def loader(documents, maker, *, rows=range(3), repeat=True, mixed=False, ending=False, workers=0):
    """:param ending: whether the second source ends in time, in each row at another step."""
    epochs = [None if repeat else 1, 1 if ending or not repeat else None]
    sources = [
        Source(documents, IdsEncoder(), Shuffled(len(documents), seed), epochs[seed])
        for seed in range(1 + mixed)
    ]
    blend = Blend({0: [1, 2], 7: [1, 1]}, rows=3, seed=1) if mixed else None
    stream = Stream(sources, maker, 3, repeat, blend=blend)
    return Loader(stream, rows, identity={}, anything_left=bool, num_workers=workers)


def steps(loader, count):
    read = []
    for _ in range(count):
        try:
            batch = loader.next_step()
        except StopIteration:
            return read
        read.append({name: value.tolist() for name, value in {**batch, "cursor": loader.cursor()}.items()})
    return read


@pytest.fixture
def made_together(monkeypatch):
    """The numbers of steps that are made at once."""
    made = []
    laid_out = blocks.BlockReader._laid_out

    def watched(self, chosen):
        made.append(len(chosen))
        return laid_out(self, chosen)

    monkeypatch.setattr(blocks.BlockReader, "_laid_out", watched)
    return made


@pytest.mark.parametrize("seq_len", [1, 8, 50])
@pytest.mark.parametrize(
    ("way", "packs_documents"),
    [("repeat", True), ("once", True), ("mixed", True), ("ending", True), ("once", False), ("mixed", False)],
)
def test_rows_and_cursors_are_those_of_one_document_after_the_other(
    files, made_together, monkeypatch, way, packs_documents, seq_len
):
    if way in ("once", "ending"):  # two of the three rows of a step at once
        monkeypatch.setattr(blocks, "LAID_OUT", 2 * seq_len)
    maker = InOrder(seq_len, packs_documents=packs_documents)
    options = {"repeat": way != "once", "mixed": way in ("mixed", "ending"), "ending": way == "ending"}
    count = 200 if way == "once" else STEPS[seq_len]  # once: until nothing is left
    expected = steps(loader(OneByOne(files), maker, **options), count)
    assert not made_together
    assert len(expected) > 2
    assert steps(loader(files, maker, **options), count) == expected
    assert max(made_together) > 3 or seq_len == 50  # where rows soon end
    # Other ranks read other rows. Each starts after any step, with blocks of other sizes than before.
    for done in range(1, len(expected), 1 + len(expected) // 40):
        rows = (range(0, 1), range(1, 3), range(3))[done % 3]
        resumed = loader(files, maker, rows=rows, **options)
        resumed.seek(torch.tensor(expected[done - 1]["cursor"][rows.start : rows.stop]))
        for found, whole in zip(steps(resumed, 3), expected[done:], strict=False):
            assert found == {name: values[rows.start : rows.stop] for name, values in whole.items()}
        jumped = cursor_after(resumed._stream, rows, done)
        assert jumped is not None or way in ("once", "ending")
        if jumped is not None:
            resumed.seek(torch.tensor(jumped))
            for found, whole in zip(steps(resumed, 2), expected[done:], strict=False):
                assert found == {name: values[rows.start : rows.stop] for name, values in whole.items()}
    assert cursor_after(resumed._stream, rows, 10**4) is None or way in ("repeat", "mixed")


def written(folder, name, dtypes):
    """A dataset with a file of each type."""
    mapped = []
    for number, dtype in enumerate(dtypes):
        file, ends = folder / f"{name}{number}.bin", folder / f"{name}{number}.ends"
        ids = np.arange(1000 * number + 1, 1000 * number + 1 + sum(LENGTHS)).astype(dtype)
        ids.tofile(file)
        np.cumsum(LENGTHS).astype("<i8").tofile(ends)
        mapped.append(MappedIds(file, dtype, len(ids), len(LENGTHS), ends=ends))
    known = {file: known_file(file) for one in mapped for file in (one.file, one.ends)}
    return TokenFiles(mapped, known=known, identity=name, contents={})


@pytest.mark.parametrize(
    "types",
    [[["<u2"], ["<u2"]], [["<u2", "<u2"], ["<u2"]], [["<u2"], ["<i4"]], [["<u2", "<u4"], ["<i4", "<i4"]]],
)
def test_sources_of_one_type_or_several_are_read_as_one_document_after_the_other(
    tmp_path, made_together, types
):
    datasets = [written(tmp_path, f"source {number} ", its) for number, its in enumerate(types)]

    def mixture(wrapped):
        sources = [
            Source(wrapped(one), IdsEncoder(), Shuffled(len(one), seed)) for seed, one in enumerate(datasets)
        ]
        blend = Blend({0: [2, 1]}, rows=3, seed=1)
        return Loader(Stream(sources, InOrder(8), 3, repeat=True, blend=blend), range(3), identity={})

    expected = steps(mixture(OneByOne), 20)
    assert not made_together
    assert steps(mixture(lambda documents: documents), 20) == expected
    assert max(made_together) > 3


@pytest.mark.parametrize("wrapped", [OneByOne, lambda documents: documents])
def test_a_row_whose_documents_are_all_empty_is_an_error(files, wrapped):
    """Row 1 of 2 reads the empty one of two documents again and again, in their own order."""
    files._mapped = [dataclasses.replace(files._mapped[0], documents=2)]
    files._ends = np.array([2])
    source = Source(wrapped(files), IdsEncoder(), Sequential(2))
    rows = Loader(Stream([source], InOrder(4), 2, repeat=True), range(2), identity={})
    with pytest.raises(DataError, match="all documents of row 1 of the global batch are empty"):
        rows.next_step()


def test_fewer_steps_of_short_documents_are_made_at_once(files, made_together, monkeypatch):
    monkeypatch.setattr(blocks, "PARTS", 40)
    expected = steps(loader(OneByOne(files), InOrder(8)), 40)
    assert steps(loader(files, InOrder(8)), 40) == expected
    assert 3 <= max(made_together) <= 10


def test_workers_make_many_steps_at_once_too(files):
    expected = steps(loader(OneByOne(files), InOrder(8), mixed=True, ending=True), 12)
    for workers in (1, 2):
        read = loader(files, InOrder(8), mixed=True, ending=True, workers=workers)
        assert steps(read, 7) == expected[:7]
        resumed = loader(files, InOrder(8), mixed=True, ending=True, workers=3 - workers)
        resumed.seek(read.cursor())
        assert steps(resumed, 5) == expected[7:]
        read.close()
        resumed.close()


def test_an_error_further_on_does_not_end_the_steps_before_it(files, made_together):
    """A document with an id that the tokenizer lacks, read together with sound ones that come before it. Where
    steps are made together it is met no sooner than where its document is read alone."""
    most = int(files.fetch([9])[0].max())  # document 9 has the highest ids of those up to it
    wrong = f"{most} is no id of the tokenizer, which has those below {most}"

    def until_the_error(documents, place):
        source = Source(documents, IdsEncoder(most), Sequential(len(documents)), name="web")
        rows = Loader(Stream([source], InOrder(4), 1, repeat=True), range(1), identity={})
        read = []
        with pytest.raises(DataError, match=f"source 'web': {place}: {wrong}"):
            while True:
                read.append(rows.next_step()["tokens"].tolist())
        return read

    expected = until_the_error(OneByOne(files), "document 9, token 119")
    found = until_the_error(files, rf"'.*a.bin', token {most - 1} \(document 9\)")
    assert found[: len(expected)] == expected
    assert np.array_equal(np.ravel(found), np.arange(1, 4 * len(found) + 1))
    assert 4 * len(found) < most
    assert max(made_together) > 1


@pytest.mark.parametrize("maker", [OnePerRow(8), BestFit(8), type("Other", (InOrder,), {})(8)])
def test_other_row_makers_make_their_rows_themselves(files, maker):
    source = Source(files, IdsEncoder(), Shuffled(len(files), 0))
    cursor = np.zeros((3, maker.cursor_width), np.int64)
    assert type(blocks.reader_of(Stream([source], maker, 3, repeat=True), range(3), cursor)) is RowReader


def test_what_is_wrong_is_found_in_joined_documents(files, monkeypatch):
    monkeypatch.setattr(feed, "IDS_PART", 1000)  # all are joined

    def beyond(place, encoder):
        documents = Source(files, encoder, Shuffled(len(files), 0))
        rows = Loader(Stream([documents], InOrder(8), 3, repeat=True), range(1), identity={})
        rows.seek(torch.tensor([place]))
        rows.next_step()

    order = Shuffled(len(files), 0).at(np.arange(0, 3 * len(files), 3))
    short = next(at for at, index in enumerate(order.tolist()) if index in (0, 8, 10))
    with pytest.raises(DataError, match=f"its cursor lies beyond the end of its document {short}"):
        beyond((short, 7), IdsEncoder())
    ids = np.concatenate(files.fetch([int(order[short]), int(order[short + 1])]))
    wrong = int(ids[ids >= 20][0])  # in the first file an id is by one more than its place
    with pytest.raises(DataError, match=rf"a.bin', token {wrong - 1} \(document \d+\): {wrong} is no id of"):
        beyond((short, 0), IdsEncoder(20))
