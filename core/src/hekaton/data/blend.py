"""Of which source each row of each step is, so that every stretch of rows has the sources in their shares.

The rows of a run are numbered through, step after step, and each number is given a source such that among
any first n of them a source of share w has w·n rows to within one: the chairman assignment of Tijdeman ("The
chairman assignment problem", 1980). So the shares are right over any stretch of rows, and whoever asks for a
row computes its source from its number alone. The rows of a step take its numbers in a rotation that the seed
fixes, so that each row of the batch meets all sources.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from hekaton.data import Integers
from hekaton.data.order import mixed, mixed_number

PERIOD = 2**16
"""Shares are multiples of one in so many rows; afterwards the sources come in the same order again."""

_TOGETHER = 64
"""Rows that a table is extended by."""


class Blend:
    """The sources of rows, by weights that may change at some steps."""

    def __init__(self, weights: Mapping[int, Sequence[float]], *, rows: int, seed: int) -> None:
        """:param weights: step from which on they hold -> weight of each source, no less than 0 and not all
            0; the first is step 0.
        :param rows: of the global batch.
        """
        assert min(weights) == 0, weights
        self._weights = {step: _finite(its) for step, its in sorted(weights.items())}
        self._starts = list(self._weights)
        self._rows = rows
        self._seed = seed
        self._tables: dict[tuple[int, frozenset[int]], _Table | None] = {}
        self._step = -1
        """The step that was asked for last; what follows is of it."""
        self._start = self._first = self._turn = 0
        """Since when its weights hold, the number of its first row since then, and by how much its rows are
        turned."""
        self._all: _Table | None = None
        """Of all sources."""

    def source_of(self, step: int, row: int, *, without: frozenset[int] = frozenset()) -> int | None:
        """The source of a row.

        :param step: steps before this one.
        :param without: sources that have nothing left for the row; the others take their share.
        :returns: ``None`` where no source with a weight is left.
        """
        if step != self._step:
            self._begin(step)
        table = self._table(self._start, without) if without else self._all
        if table is None:
            return None
        return table[(self._first + (row + self._turn) % self._rows) % PERIOD]

    def sources_of(
        self, step: int, steps: int, rows: Sequence[int], *, without: Sequence[frozenset[int]]
    ) -> Integers | None:
        """The sources of rows in some steps, or in fewer of them where the weights change.

        :param step: steps before the first.
        :param without: as in :meth:`source_of`, of each row.
        :returns: (steps, rows); ``None`` where a row has no source left.
        """
        later = bisect_right(self._starts, step)
        start = self._starts[later - 1]
        if later < len(self._starts):
            steps = min(steps, self._starts[later] - step)
        each = np.arange(step, step + steps)
        keys = np.array([self._seed * 0x9E3779B97F4A7C15 + at & 2**64 - 1 for at in each.tolist()], np.uint64)
        turns = (mixed(keys) % np.uint64(self._rows)).astype(np.int64)
        turned = (np.asarray(rows) + turns[:, None]) % self._rows
        numbers = ((each - start) * self._rows)[:, None] + turned
        numbers %= PERIOD
        sources = np.empty(numbers.shape, np.int64)
        for left in set(without):
            table = self._table(start, left)
            if table is None:
                return None
            mine = np.array([one == left for one in without])
            sources[:, mine] = table.at(numbers[:, mine])
        return sources

    def _begin(self, step: int) -> None:
        """What all rows of a step have in common."""
        self._step = step
        self._start = self._starts[bisect_right(self._starts, step) - 1]
        self._first = (step - self._start) * self._rows
        self._turn = mixed_number(self._seed * 0x9E3779B97F4A7C15 + step & 2**64 - 1) % self._rows
        self._all = self._table(self._start, frozenset())

    def shares(self, step: int) -> list[float]:
        """The share of each source in the rows of a step."""
        start = self._starts[bisect_right(self._starts, step) - 1]
        weights = self._weights[start]
        return [weight / sum(weights) for weight in weights]

    def _table(self, start: int, without: frozenset[int]) -> _Table | None:
        key = (start, without)
        if key not in self._tables:
            weights = [
                0.0 if source in without else weight for source, weight in enumerate(self._weights[start])
            ]
            self._tables[key] = _Table(weights) if any(weights) else None
        return self._tables[key]


def _finite(weights: Sequence[float]) -> Sequence[float]:
    """The same weights, or parts of them where their sum is more than a number can be."""
    largest = max(weights)
    return weights if sum(weights) < inf else [weight / largest for weight in weights]


class _Table:
    """The sources of one period, computed as far as they are asked for."""

    def __init__(self, weights: Sequence[float]) -> None:
        total = sum(weights)
        counts = [max(1, round(weight / total * PERIOD)) if weight else 0 for weight in weights]
        counts[int(np.argmax(counts))] += PERIOD - sum(counts)
        self._shares = [(source, count / PERIOD) for source, count in enumerate(counts) if count]
        self._slack = 1 / (2 * len(self._shares) - 2) if len(self._shares) > 1 else 0.0
        self._given = [0] * len(weights)
        self._sources: list[int] = []
        self._array = np.empty(PERIOD, np.int64)
        """As far as ``_known`` the same."""
        self._known = 0

    def __getitem__(self, number: int) -> int:
        while len(self._sources) <= number:
            self._extend()
        return self._sources[number]

    def at(self, numbers: Integers) -> Integers:
        """The sources of many rows."""
        most = int(numbers.max())
        while len(self._sources) <= most:
            self._extend()
        if self._known <= most:
            self._array[self._known : len(self._sources)] = self._sources[self._known :]
            self._known = len(self._sources)
        return self._array[numbers]

    def _extend(self) -> None:
        """Give some rows each to the source that would be late the soonest, of those that are not early."""
        given, sources, slack = self._given, self._sources, self._slack
        early, late = slack - 1e-9, 1 - slack
        for place in range(len(sources) + 1, len(sources) + 1 + _TOGETHER):
            chosen, earliest = -1, float("inf")
            for source, share in self._shares:
                due = share * place - given[source]
                if due >= early:
                    deadline = (late - due) / share
                    if deadline < earliest - 1e-9:
                        chosen, earliest = source, deadline
            given[chosen] += 1
            sources.append(chosen)
