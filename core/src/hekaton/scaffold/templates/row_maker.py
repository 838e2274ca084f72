"""The row maker: takes tokens off a feed of documents, and writes one row of a batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hekaton.data import Values
from hekaton.data.feed import Feed
from hekaton.loss import IGNORE_INDEX


class PlainRows:
    """Tokens one after the other, cut into rows; each predicts the next one of the row."""

    unit = "tokens"
    cursor_width = 2  # where a row begins follows from the documents and tokens that were taken

    def __init__(self, seq_len: int) -> None:
        self.units_per_row = seq_len
        self.ahead = seq_len  # tokens that are to be in the feed before a row is made

    def empty(self, rows: int) -> dict[str, Values]:
        """So many rows of padding."""
        shape = (rows, self.units_per_row)
        return {
            "tokens": np.zeros(shape, np.int64),
            "labels": np.full(shape, IGNORE_INDEX, np.int64),
        }

    def make(self, feed: Feed, out: Mapping[str, Values]) -> int:
        """Write the next row.

        :param out: a row of each tensor of :meth:`empty`, (seq_len,); :returns: the tokens in the row.
        """
        end = 0
        for span in feed.take(self.units_per_row):
            begin, end = end, end + len(span.ids)
            out["tokens"][begin:end] = span.ids
            targets = span.ids if span.targets is None else np.where(span.targets, span.ids, IGNORE_INDEX)
            out["labels"][max(0, begin - 1) : end - 1] = targets[0 if begin else 1 :]
        return end if end > 1 else 0


def build(section: None, seq_len: int) -> PlainRows:
    return PlainRows(seq_len)
