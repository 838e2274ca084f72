"""Where values come from: TOML files with their lines, flags, flavors; and what they come to together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hekaton.config.base import Path, dotted

Origin = Callable[[], str]
"""Says where a value was set; called only when somebody wants to know."""


class Values:
    """Values by path, each with its origin; what is merged later counts."""

    def __init__(self) -> None:
        self.values: dict[Path, Any] = {}
        self.origins: dict[Path, Origin] = {}
        self._below: dict[Path, dict[Path, None]] = defaultdict(dict)

    def merge(self, tables: Mapping[str, Any], origin: Callable[[Path], Origin], at: Path = ()) -> None:
        """Lay tables over what is there: tables merge, other values replace."""
        for key, value in tables.items():
            path = (*at, key)
            if isinstance(value, Mapping) and (value or self.below(path)):
                self._drop(path)
                self.merge(value, origin, path)
            else:
                self.remove(path)
                self._set(path, value, origin(path))

    def below(self, path: Path) -> list[Path]:
        """Paths at or below ``path`` that are set."""
        return list(self._below.get(path, ()))

    def remove(self, path: Path) -> None:
        for end in range(1, len(path)):
            self._drop(path[:end])
        for other in self.below(path):
            self._drop(other)

    def move(self, path: Path, to: Path) -> None:
        """Give the value at ``path``, and its origin, another path."""
        self._set(to, self.values[path], self.origins[path])
        self._drop(path)

    def _set(self, path: Path, value: Any, origin: Origin) -> None:
        self.values[path] = value
        self.origins[path] = origin
        for end in range(len(path) + 1):
            self._below[path[:end]][path] = None

    def _drop(self, path: Path) -> None:
        if self.values.pop(path, self) is not self:
            for end in range(len(path) + 1):
                del self._below[path[:end]][path]

    def origin(self, path: Path) -> str:
        """Where the value at a path, or the next thing around or inside it, was set; empty for a default."""
        inside = self._below.get(path)
        if inside:
            return self.origins[next(iter(inside))]()
        while path:
            if path in self.values:
                return self.origins[path]()
            path = path[:-1]
        return ""

    def tables(self) -> dict[str, Any]:
        """The values as nested tables."""
        tables: dict[str, Any] = {}
        for path, value in self.values.items():
            table = tables
            for key in path[:-1]:
                table = table.setdefault(key, {})
            table[path[-1]] = value
        return tables


class Origins(Mapping[str, str]):
    """Dotted path -> where it was set; paths that are not in it have their default."""

    def __init__(self, values: Values) -> None:
        self._origins = {dotted(path): values.origins[path] for path in values.values}

    def __getitem__(self, path: str) -> str:
        return self._origins[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)
