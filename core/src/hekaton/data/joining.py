"""Ids of many documents in one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from hekaton.data import Integers, JoinedDocuments, Values

_AT_ONCE = 2**8
"""Documents that are joined at once: Python's garbage collector runs for every 700 objects more."""


def joined(documents: JoinedDocuments, located: Integers) -> Values:
    """The ids of documents or of parts of them, one after the other.

    :param located: (n, 3), n > 0, see :class:`hekaton.data.JoinedDocuments`.
    """
    return in_one(documents.views(located, documents.dtype), documents.dtype, number=len(located))


def in_one(views: Iterator[memoryview], dtype: np.dtype[Any], *, number: int) -> Values:
    """The ids in so many views, one after the other."""
    # Joining bytes costs half of what joining arrays does.
    joined = [b"".join(itertools.islice(views, _AT_ONCE)) for _ in range(0, number, _AT_ONCE)]
    return np.frombuffer(joined[0] if len(joined) == 1 else b"".join(joined), dtype)
