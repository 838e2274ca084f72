"""Mixtures: shares of tokens, each source's own position, epochs, and the same rows however they are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from hekaton import reading
from hekaton.control import RunControl
from hekaton.data import mixture as mixtures
from hekaton.data.blend import Blend
from hekaton.data.encoders import IdsEncoder
from hekaton.data.feed import Source
from hekaton.data.loader import Loader
from hekaton.data.mixture import Mixture, MixtureEntry
from hekaton.data.order import Shuffled
from hekaton.data.row_makers import BestFit, InOrder, OnePerRow
from hekaton.data.rows import Stream
from hekaton.errors import DataError

SEQ_LEN = 8


class Held:
    """Documents of one source: its number in the thousands, and each token once."""

    def __init__(self, number, documents, length):
        self.fingerprint = f"source {number}"
        starts = range(0, documents * length, length)
        self.documents = [np.arange(start, start + length) + 100_000 * (number + 1) for start in starts]

    def __len__(self):
        return len(self.documents)

    def fetch(self, indices):
        return [self.documents[index] for index in indices]


def stream(weights, rows, *, sizes=((50, 5), (40, 23), (30, 7)), epochs=(None,) * 3, maker=None, repeat=True):
    """:param weights: of the sources, or step -> weights."""
    by_step = weights if isinstance(weights, dict) else {0: weights}
    sources = [
        Source(Held(number, *size), IdsEncoder(), Shuffled(size[0], 5), epochs[number], f"source{number}")
        for number, size in enumerate(sizes[: len(by_step[0])])
    ]
    blend = Blend(by_step, rows=rows, seed=5)
    return Stream(sources, maker or InOrder(SEQ_LEN), rows, repeat=repeat, blend=blend)


def loader(stream, rows=None, **options):
    return Loader(stream, rows or range(stream.rows), identity={}, **options)


@pytest.mark.parametrize("rows", [7, 96])
@pytest.mark.parametrize(
    "weights", [(1, 1), (5, 3, 1, 1), (0.9, 0.09, 0.009, 0.001), [0.17] * 5 + [0.01] * 15]
)
def test_shares_hold_over_any_thousand_rows(weights, rows):
    blend = Blend({0: weights}, rows=rows, seed=3)
    number = 3000 // rows + 1
    found = np.array([blend.source_of(step, row) for step in range(number) for row in range(rows)])
    for source, weight in enumerate(weights):
        before = np.concatenate([[0], np.cumsum(found == source)])
        shares = (before[1000:] - before[:-1000]) / 1000
        assert np.abs(shares - weight / sum(weights)).max() <= 0.005, (source, shares.min(), shares.max())
    if rows > 1:  # each row of the batch meets every large source, in its share
        long = np.array([[blend.source_of(step, row) for row in (0, rows - 1)] for step in range(800)])
        share = (long == 0).mean(axis=0)
        assert np.abs(share - weights[0] / sum(weights)).max() < 0.08, share


def test_weights_whose_sum_is_more_than_a_number_can_be_are_shares():
    blend = Blend({0: [1e308, 1e308], 5: [1.5e308, 0.5e308]}, rows=4, seed=0)
    assert (blend.shares(0), blend.shares(5)) == ([0.5, 0.5], [0.75, 0.25])
    assert sum(blend.source_of(step, row) for step in range(5) for row in range(4)) == 10
    assert sum(blend.source_of(step, row) for step in range(5, 10) for row in range(4)) == 5


def test_a_source_without_weight_is_never_read():
    blend = Blend({0: [1, 0, 1]}, rows=4, seed=0)
    assert {blend.source_of(step, row) for step in range(50) for row in range(4)} == {0, 2}


def test_rows_are_of_one_source_and_the_shares_are_of_tokens():
    """Documents of 5, 23 and 7 tokens: equal weights give equal numbers of tokens."""
    mixed = loader(stream((1, 1, 1), 4))
    met = Counter()
    for _ in range(250):
        for row in mixed.next_step()["tokens"].tolist():
            (source,) = {token // 100_000 - 1 for token in row}
            met[source] += len(row)
    total = sum(met.values())
    assert all(abs(tokens / total - 1 / 3) < 0.005 for tokens in met.values()), met
    progress = mixed.progress()
    assert [one.tokens for one in progress] == [met[source] for source in range(3)]
    assert progress[0].epochs == pytest.approx(met[0] / 250, abs=0.1)


@pytest.mark.parametrize("maker", [InOrder(SEQ_LEN), BestFit(SEQ_LEN)])
def test_the_same_rows_on_any_ranks_and_workers_and_after_any_resume(maker):
    mixed = stream((3, 2, 1), 6, maker=maker)
    whole = loader(mixed)
    steps, cursors = [], [whole.cursor()]
    for _ in range(30):
        steps.append(whole.next_step())
        cursors.append(whole.cursor())
    for number in (2, 3):
        ranks = [loader(mixed, range(at, at + 6 // number)) for at in range(0, 6, 6 // number)]
        for done in (0, 7, 20):
            for rank in ranks:
                rank.seek(cursors[done][rank.rows.start : rank.rows.stop])
            for step in range(done, done + 5):
                parts = [rank.next_step() for rank in ranks]
                for name, expected in steps[step].items():
                    assert torch.cat([part[name] for part in parts]).equal(expected)
    working = loader(mixed, num_workers=2)
    try:
        for step in steps[:10]:
            assert working.next_step()["tokens"].equal(step["tokens"])
    finally:
        working.close()


def tokens_of(mixed, steps):
    found = [row for _ in range(steps) for row in mixed.next_step()["tokens"].tolist()]
    return [token for row in found for token in row]


def test_other_weights_at_a_resume_keep_each_sources_position():
    first = loader(stream((1, 1), 4, epochs=(1, 1)))
    tokens = tokens_of(first, 12)
    second = loader(stream((1, 9), 4, epochs=(1, 1)))
    second.seek(first.cursor())
    tokens += tokens_of(second, 12)
    assert max(Counter(token for token in tokens if token).values()) == 1  # nothing is repeated
    counts = Counter(token // 100_000 - 1 for token in tokens[len(tokens) // 2 :])
    assert counts[1] / counts.total() > 0.85


def test_weights_by_step():
    by_step = {0: (1, 0), 10: (0, 1), 20: (1, 1)}
    mixed = loader(stream(by_step, 4))
    met = [Counter(token // 100_000 - 1 for token in tokens_of(mixed, 10)) for _ in range(3)]
    assert [sorted(one) for one in met] == [[0], [1], [0, 1]]
    assert met[2][0] == met[2][1]


@pytest.mark.parametrize("maker", [InOrder(SEQ_LEN), BestFit(SEQ_LEN), OnePerRow(SEQ_LEN)])
@pytest.mark.parametrize("sizes", [((50, 5), (2, 9), (3, 6)), ((50, 5), (3, 8), (5, 4))])
def test_after_a_resume_the_others_have_the_turns_of_a_source_that_has_ended(maker, sizes):
    """Whose turn it is depends on what has ended, which a resumed row has not seen: it follows from its cursor."""
    mixed = stream((1, 1, 0.3), 4, sizes=sizes, epochs=(None, 1, 2), maker=maker)
    read, rows = loader(mixed), []
    for _ in range(40):
        tokens = read.next_step()["tokens"].tolist()
        rows.append((tokens, list(read.sources), read.cursor()))
    assert read.ended == {1, 2}
    for done in range(1, 40, 2):
        resumed = loader(mixed)
        resumed.seek(rows[done - 1][2])
        for tokens, sources, cursor in rows[done : done + 6]:
            assert resumed.next_step()["tokens"].tolist() == tokens
            assert list(resumed.sources) == sources
            assert torch.equal(resumed.cursor(), cursor)


def test_changed_weights_ended_sources_and_what_was_read_are_said(caplog, monkeypatch):
    monkeypatch.setattr(reading, "all_sum", lambda tensor, group: tensor)  # one process
    mixed = loader(stream({0: (1, 0), 10: (1, 3)}, 4, epochs=(1, None)))
    watch = reading.MixtureWatch(mixed, Mixture([entry("a", (0, 1.0))], stops=True), RunControl())
    met = Counter()
    with caplog.at_level("INFO", "hekaton"):
        for step in range(1, 31):
            met.update(token // 100_000 - 1 for token in tokens_of(mixed, 1) if token)
            watch.look(step)
        reading.log_read(mixed, None, device=torch.device("cpu"))
    # Rows have 13 or 12 documents of 5 tokens: 8 sequences of 8, the last of 12 documents of 4, and of 13 a
    # token that is left.
    assert caplog.messages[0] == "step 8: source 'source0' is read to its end in rows of this process"
    assert met[0] == 248
    assert "mixture from step 11 on: source0 25.00%, source1 75.00% of the tokens" in caplog.messages
    share = 100 * met[1] / met.total()
    assert f"mixture: {met[1]:,} tokens of source1, {share:.2f}% of all, in " in caplog.text
    assert f"mixture: {met[0]:,} tokens of source0, " in caplog.text
    reached = reading.shares_of_sources(mixed, None)
    assert reached["data/source1/share"] == met[1] / met.total()
    assert reached["data/source0/epochs"] == 1  # the tokens that are left are left behind


@pytest.mark.parametrize("weights", [(1, 1), (5, 1)])
def test_a_source_is_read_as_often_as_it_may_be_and_the_others_take_its_share(weights):
    """50 documents of 5 tokens, twice: 500 tokens; a last token alone in a row predicts nothing."""
    mixed = loader(stream(weights, 4, epochs=(2, None)))
    tokens = tokens_of(mixed, 120)
    met = Counter(token for token in tokens if 100_000 <= token < 200_000)
    assert max(met.values()) == 2
    assert len(met) == 250
    assert met.total() >= 500 - 4
    assert mixed.ended_names() == ["source0"]
    assert not mixed.all_ended()
    assert {token // 100_000 - 1 for token in tokens_of(mixed, 5)} == {1}
    assert mixed.progress()[0].epochs == pytest.approx(2.0)


def test_all_sources_end():
    mixed = loader(stream((1, 1), 2, epochs=(1, 1)))
    while not mixed.all_ended():
        mixed.next_step()
    assert mixed.ended_names()
    once = loader(stream((1, 1), 2, epochs=(1, 1), repeat=False))
    seen = []
    with pytest.raises(StopIteration):
        while True:
            seen += [token for row in once.next_step()["tokens"].tolist() for token in row if token]
    assert max(Counter(seen).values()) == 1
    assert len(seen) >= 50 * 5 + 40 * 23 - 4  # but for last tokens alone in a row


def entry(name, *weights, **options):
    return MixtureEntry(name=name, dataset="text", path=None, weights=dict(weights), **options)


def test_weights_that_say_nothing_are_errors():
    with pytest.raises(DataError, match="the weights of all sources of the mixture are 0\n"):
        Mixture([entry("a", (0, 0.0)), entry("b", (0, 0.0))], stops=False)
    with pytest.raises(DataError, match="are 0 from step 11 on"):
        Mixture([entry("a", (0, 1.0), (10, 0.0))], stops=False)
    with pytest.raises(DataError, match="source 'b' is empty: it has no documents"):
        Mixture([entry("b", (0, 1.0))], stops=False).opened(lambda entry: Held(0, 0, 1))


def test_errors_of_a_source_name_it():
    mixed = stream((1, 1), 2)
    nothing = Held(1, 40, 1)
    nothing.documents = [one[:0] for one in nothing.documents]
    empty = replace(mixed.sources[1], documents=nothing)
    with pytest.raises(DataError, match=r"^source 'source1': the dataset is empty: none of its 40 documents"):
        tokens_of(loader(replace(mixed, sources=(mixed.sources[0], empty))), 4)
    wide = replace(mixed.sources[0], encoder=IdsEncoder(7))
    with pytest.raises(
        DataError, match=r"^source 'source0': document \d+, token \d+: 100,\d+ is no id of the"
    ):
        tokens_of(loader(replace(mixed, sources=(wide, mixed.sources[1]))), 4)


def test_a_mixture_is_its_documents_one_after_the_other():
    parts = {"a": Held(0, 3, 2), "b": Held(1, 2, 2)}
    mixture = Mixture([entry("a", (0, 1.0)), entry("b", (0, 1.0))], stops=False)
    mixture = mixture.opened(lambda entry: parts[entry.name])
    assert [document[0] for document in mixture.fetch([4, 0, 2, 3])] == [200_002, 100_000, 100_004, 200_000]
    assert len(mixture) == 5


def test_sources_of_one_name_are_told_apart():
    assert mixtures._names(["web", "text", "web", "code"]) == ["web-1", "text", "web-2", "code"]
    with pytest.raises(DataError, match="two sources of the mixture would be called 'web-1'"):
        mixtures._names(["web", "web", "web-1"])
