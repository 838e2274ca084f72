"""The orders of documents: one epoch like the other, or a keyed permutation of every epoch.

The permutation is computed where it is needed and stored nowhere.

A Feistel network permutes the integers below a power of four; walking its cycles until the value is below the
number of documents restricts it to a permutation of these (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). All arithmetic is on 64-bit unsigned integers, so that the order is the same on every machine
and with every version of numpy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.int64]
Unsigned: TypeAlias = npt.NDArray[np.uint64]

ROUNDS = 8
_MOST_TABLED = 14
"""Bits of half a number: rounds on more documents than 4**14 are computed, and not looked up."""
_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ONE = np.uint64(1)


@dataclass(frozen=True)
class Shuffled:
    """``shuffled``: every epoch has the documents in an order of its own, which the seed fixes."""

    documents: int
    seed: int

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return document_at(places, documents=self.documents, seed=self.seed)


@dataclass(frozen=True)
class Sequential:
    """``sequential``: every epoch has the documents in their own order."""

    documents: int

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return places % self.documents


def shuffled(section: Any, documents: int, seed: int) -> Shuffled:
    return Shuffled(documents, seed)


def sequential(section: Any, documents: int, seed: int) -> Sequential:
    return Sequential(documents)


def document_at(numbers: npt.NDArray[np.int64], *, documents: int, seed: int) -> npt.NDArray[np.int64]:
    """Which documents stand at places ``numbers`` of the endless sequence of epochs.

    Each epoch has every document once, in an order of its own.

    :param numbers: (n,) places, from 0; place p is in epoch ``p // documents``.
    :param documents: number of documents, at least 1.
    :returns: (n,) indices in ``range(documents)``.
    """
    half = max(1, ((documents - 1).bit_length() + 1) // 2)
    start = mixed_number(seed * _GOLDEN & _WORD)
    first, last = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    found: Integers
    if half <= _MOST_TABLED and first // documents == last // documents:
        epoch = first // documents
        tables = _tables(mixed_number(start ^ epoch), half)
        found = _walked(numbers - epoch * documents, documents, lambda its, _: _looked_up(its, tables, half))
        return found
    places, count = numbers.astype(np.uint64), np.uint64(documents)
    key = mixed(np.uint64(start) ^ places // count)
    found = _walked(places % count, count, lambda its, at: _permuted(its, key[at], np.uint64(half)))
    return found.astype(np.int64)


def _walked(values: Any, count: Any, permuted: Callable[[Any, Any], Any]) -> Any:
    """Permuted until they are below the number of documents."""
    values = permuted(values, slice(None))
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = permuted(values[outside], outside)
        outside = outside[values[outside] >= count]
    return values


@functools.lru_cache(16)
def _tables(key: int, half: int) -> list[Integers]:
    """What each round does to the other half, for each half that there is."""
    halves = np.arange(1 << half, dtype=np.uint64)
    mask = np.uint64((1 << half) - 1)
    keys = [np.uint64(key + number * _GOLDEN & _WORD) for number in range(ROUNDS)]
    return [(mixed(halves ^ key) & mask).astype(np.int64) for key in keys]


def _looked_up(values: Integers, tables: Sequence[Integers], half: int) -> Integers:
    """As :func:`_permuted`, of one epoch."""
    left, right = values >> half, values & (1 << half) - 1
    for table in tables:
        left, right = right, left ^ table[right]
    return left << half | right


def _permuted(values: Unsigned, key: Unsigned, half: np.uint64) -> Unsigned:
    """A permutation of the integers below ``4**half``, chosen by ``key``."""
    mask = (_ONE << half) - _ONE
    left, right = values >> half, values & mask
    for round_number in range(ROUNDS):
        round_key = key + np.uint64((round_number * _GOLDEN) & _WORD)
        left, right = right, left ^ (mixed(right ^ round_key) & mask)
    return (left << half) | right


def mixed(values: Unsigned) -> Unsigned:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def mixed_number(value: int) -> int:
    """:func:`mixed` of one number, which numpy would take ten times as long for."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _WORD
    return value ^ value >> 31
