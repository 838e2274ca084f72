"""Where rows are after many steps, found by the lengths of documents alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hekaton.data import Integers, JoinedDocuments
from hekaton.data.blocks import joins
from hekaton.data.feed import Source
from hekaton.data.rows import Stream

_STEPS = 2**13
_FEWEST, _MOST = 2**10, 2**17
"""Documents that are looked up at once, more and more of them."""


def cursor_after(stream: Stream, rows: Sequence[int], steps: int) -> Integers | None:
    """The cursor of some rows after so many steps from the first; see :mod:`hekaton.data.rows`.

    :returns: (rows, cursor width); ``None`` where the documents must be read for it, or a source has ended.
    """
    if not joins(stream):
        return None
    cursor = np.zeros((len(rows), stream.cursor_width), np.int64)
    made = _rows_made(stream, rows, steps)
    if made is None:
        return None
    for number, source in enumerate(stream.sources):
        for index, row in enumerate(rows):
            tokens = int(made[index, number]) * stream.maker.units_per_row
            place = _place_after(source, tokens, row=row, rows=stream.rows)
            if place is None:
                return None
            if stream.blend is None:
                cursor[index] = place
            else:
                cursor[index, 0] = steps
                cursor[index, 1 + 3 * number : 4 + 3 * number] = *place, tokens
    return cursor


def _rows_made(stream: Stream, rows: Sequence[int], steps: int) -> Integers | None:
    """(rows, sources), how many rows of each source each row has made."""
    if stream.blend is None:
        return np.full((len(rows), 1), steps)
    made = np.zeros((len(rows), len(stream.sources)), np.int64)
    done = 0
    while done < steps:
        chosen = stream.blend.sources_of(
            done, min(_STEPS, steps - done), rows, without=[frozenset()] * len(rows)
        )
        if chosen is None:
            return None
        done += len(chosen)
        for number in range(len(stream.sources)):
            made[:, number] += (chosen == number).sum(axis=0)
    return made


def _place_after(source: Source, tokens: int, *, row: int, rows: int) -> tuple[int, int] | None:
    """The documents that are read after so many tokens, and how many tokens of the next.

    :returns: ``None`` where there is nothing behind them.
    """
    assert isinstance(source.documents, JoinedDocuments)
    count, read, left = len(source.documents), 0, tokens
    last = None if source.epochs is None else source.epochs * count
    together = _FEWEST
    while True:
        places = (read + np.arange(together)) * rows + row
        together = min(2 * together, _MOST)
        if last is not None:
            places = places[places < last]
        if not len(places):
            return None
        located = source.documents.locate(source.order.at(places))
        ends = (located[:, 2] - located[:, 1]).cumsum()
        if ends[-1] > left:
            number = int(ends.searchsorted(left, side="right"))
            return read + number, left - int(ends[number - 1] if number else 0)
        left -= int(ends[-1])
        read += len(places)
        if read * rows >= count and left == tokens:
            return None
