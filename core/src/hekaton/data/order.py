"""The order of documents: a keyed permutation of every epoch, computed where it is needed and stored nowhere.

A Feistel network permutes the integers below a power of four; walking its cycles until the value is below the
number of documents restricts it to a permutation of these (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002). All arithmetic is on 64-bit unsigned integers, so that the order is the same on every machine
and with every version of numpy.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Unsigned: TypeAlias = npt.NDArray[np.uint64]

ROUNDS = 8
_WORD = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ONE = np.uint64(1)


def document_at(numbers: npt.NDArray[np.int64], *, documents: int, seed: int) -> npt.NDArray[np.int64]:
    """Which documents stand at places ``numbers`` of the endless sequence of epochs.

    Each epoch has every document once, in an order of its own.

    :param numbers: (n,) places, from 0; place p is in epoch ``p // documents``.
    :param documents: number of documents, at least 1.
    :returns: (n,) indices in ``range(documents)``.
    """
    places = numbers.astype(np.uint64)
    count = np.uint64(documents)
    epochs, values = places // count, places % count
    half = np.uint64(max(1, ((documents - 1).bit_length() + 1) // 2))
    start = np.full_like(epochs, (seed * _GOLDEN) & _WORD)
    key = _mixed(_mixed(start) ^ epochs)
    values = _permuted(values, key, half)
    outside = np.flatnonzero(values >= count)
    while outside.size:
        values[outside] = _permuted(values[outside], key[outside], half)
        outside = outside[values[outside] >= count]
    return values.astype(np.int64)


def _permuted(values: Unsigned, key: Unsigned, half: np.uint64) -> Unsigned:
    """A permutation of the integers below ``4**half``, chosen by ``key``."""
    mask = (_ONE << half) - _ONE
    left, right = values >> half, values & mask
    for round_number in range(ROUNDS):
        round_key = key + np.uint64((round_number * _GOLDEN) & _WORD)
        left, right = right, left ^ (_mixed(right ^ round_key) & mask)
    return (left << half) | right


def _mixed(values: Unsigned) -> Unsigned:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
