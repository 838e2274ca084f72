"""The order of documents is a permutation of every epoch, its own one, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from hekaton.data.order import document_at, mixed, mixed_number


def epoch(number: int, *, documents: int, seed: int) -> list[int]:
    places = np.arange(number * documents, (number + 1) * documents)
    return document_at(places, documents=documents, seed=seed).tolist()


@pytest.mark.parametrize("documents", [*range(1, 70), 255, 256, 257, 1000, 4097])
def test_every_epoch_has_every_document_once(documents: int) -> None:
    for number in (0, 1, 7):
        assert sorted(epoch(number, documents=documents, seed=3)) == list(range(documents))


def test_every_epoch_and_every_seed_has_an_order_of_its_own() -> None:
    orders = [tuple(epoch(number, documents=50, seed=seed)) for number in range(4) for seed in (-1, 0, 1, 2)]
    assert len(set(orders)) == 16
    assert tuple(range(50)) not in orders


def test_a_place_does_not_depend_on_what_else_is_asked() -> None:
    places = np.array([5, 1_000_003, 0, 5, 77])
    together = document_at(places, documents=50, seed=9)
    alone = [document_at(places[i : i + 1], documents=50, seed=9)[0] for i in range(len(places))]
    assert together.tolist() == alone


def test_documents_by_the_billion_need_no_memory() -> None:
    documents = 2**40 + 3
    found = document_at(np.arange(1000) + documents // 2, documents=documents, seed=0)
    assert len(set(found.tolist())) == 1000
    assert found.min() >= 0
    assert found.max() < documents
    assert np.abs(np.diff(found)).min() > 1000


def test_neighbours_are_spread_evenly() -> None:
    """Chi-square of the tenth of the documents that a tenth of the places leads to: 81 degrees of freedom."""
    order = np.array(epoch(0, documents=10_000, seed=0))
    counts = np.histogram2d(np.arange(10_000) // 1000, order // 1000, bins=10)[0]
    assert 40 < ((counts - 100) ** 2 / 100).sum() < 140


def in_python(place: int, *, documents: int, seed: int) -> int:
    """The same cipher in Python's own integers, which no version of numpy can change."""
    word = 2**64 - 1

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & word
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB & word
        return value ^ (value >> 31)

    number, value = divmod(place, documents)
    half = 1
    while 4**half < documents:
        half += 1
    key = mix(mix(seed * 0x9E3779B97F4A7C15 & word) ^ number)
    while True:
        left, right = divmod(value, 2**half)
        for step in range(8):
            mixed = mix(right ^ ((key + step * 0x9E3779B97F4A7C15) & word))
            left, right = right, left ^ (mixed % 2**half)
        value = left * 2**half + right
        if value < documents:
            return value


@pytest.mark.parametrize("documents", [1, 2, 5, 64, 65, 1000])
def test_the_arithmetic_is_that_of_plain_integers(documents: int) -> None:
    places = np.arange(0, 40 * documents, max(1, documents // 7))
    expected = [in_python(place, documents=documents, seed=-5) for place in places.tolist()]
    assert document_at(places, documents=documents, seed=-5).tolist() == expected


@pytest.mark.parametrize("value", [0, 1, 2**63 + 12345, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_one_number_is_mixed_as_many_are(value: int) -> None:
    assert mixed_number(value) == int(mixed(np.array([value], np.uint64))[0])
