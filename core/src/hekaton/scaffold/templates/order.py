"""The order of documents: which one stands at which place of an endless sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hekaton.data import Integers


@dataclass(frozen=True)
class BackAndForth:
    """Every second epoch has the documents backwards."""

    documents: int

    def at(self, places: Integers) -> Integers:
        """:param places: (n,), from 0; :returns: (n,), each document once in an epoch."""
        epochs, within = np.divmod(places, self.documents)
        return np.where(epochs % 2, self.documents - 1 - within, within)


def build(section: None, documents: int, seed: int) -> BackAndForth:
    """:param seed: that of the data; this order has nothing random."""
    return BackAndForth(documents)
