"""Documents of mapped files are read many at once: rows and cursors are those of reading one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hekaton.corpus.tokens import MappedIds, TokenFiles
from hekaton.data import feed
from hekaton.data.blend import Blend
from hekaton.data.contents import known_file
from hekaton.data.encoders import IdsEncoder
from hekaton.data.feed import Source
from hekaton.data.loader import Loader
from hekaton.data.order import Shuffled
from hekaton.data.row_makers import InOrder
from hekaton.data.rows import Stream
from hekaton.errors import DataError

STEPS = 40
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


def loader(documents, maker, *, rows=range(3), repeat=True, mixed=False):
    epochs = None if repeat else 1
    sources = [
        Source(documents, IdsEncoder(), Shuffled(len(documents), seed), epochs) for seed in range(1 + mixed)
    ]
    blend = Blend({0: [2, 1]}, rows=3, seed=1) if mixed else None
    return Loader(Stream(sources, maker, 3, repeat, blend=blend), rows, identity={}, anything_left=bool)


def steps(loader):
    read = []
    for _ in range(STEPS):
        try:
            batch = loader.next_step()
        except StopIteration:
            return read
        read.append({name: value.tolist() for name, value in {**batch, "cursor": loader.cursor()}.items()})
    return read


@pytest.mark.parametrize("seq_len", [1, 8, 50])
@pytest.mark.parametrize("way", ["repeat", "once", "mixed"])
@pytest.mark.parametrize("packs_documents", [True, False])
def test_rows_and_cursors_are_those_of_one_document_after_the_other(files, packs_documents, way, seq_len):
    maker = InOrder(seq_len, packs_documents=packs_documents)
    options = {"repeat": way != "once", "mixed": way == "mixed"}
    expected = steps(loader(OneByOne(files), maker, **options))
    assert len(expected) > 2
    assert steps(loader(files, maker, **options)) == expected
    for done, row in ((1, 0), (len(expected) // 2, 2)):
        resumed = loader(files, maker, rows=range(row, row + 1), **options)
        resumed.seek(torch.tensor(expected[done - 1]["cursor"][row : row + 1]))
        for found, whole in zip(steps(resumed), expected[done:], strict=False):
            assert found == {name: values[row : row + 1] for name, values in whole.items()}


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
    with pytest.raises(DataError, match=r"and the tokenizer those below 20"):
        beyond((short, 0), IdsEncoder(20))
