"""Where values come from: TOML files with their lines, flags, flavors; and what they come to together."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import tomli

from hekaton.config.base import Path, dotted
from hekaton.errors import ConfigError

Origin = Callable[[], str]
"""Says where a value was set; called only when somebody wants to know."""


@dataclass(frozen=True)
class TomlFile:
    """A TOML file, read and parsed."""

    name: str
    text: str
    tables: Mapping[str, Any]

    @classmethod
    def read(cls, path: FilePath | str) -> TomlFile:
        """:raises ConfigError: when there is no such file, or it is no TOML."""
        name = os.fspath(path)
        try:
            data = FilePath(path).read_bytes()
        except FileNotFoundError as e:
            raise ConfigError(f"there is no file '{name}'", hint=_near_files(FilePath(path))) from e
        except OSError as e:
            raise ConfigError(f"cannot read '{name}': {e.strerror}") from e
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            line = data.count(b"\n", 0, e.start) + 1
            raise ConfigError(
                f"byte {data[e.start]:#04x} is not UTF-8, which TOML is written in",
                origin=f"{name}, line {line}",
            ) from e
        try:
            return cls(name, text, tomli.loads(text))
        except tomli.TOMLDecodeError as e:
            lines = [*text.splitlines(), ""]
            number = min(e.lineno, len(lines))
            if number == len(lines) > 1:  # the end of the file: show the last line that there is
                number -= 1
            raise ConfigError(
                f"TOML syntax: {e.msg[:1].lower()}{e.msg[1:]}",
                origin=f"{name}, line {number}",
                hint=lines[number - 1].strip(),
            ) from e

    def origin(self, path: Path) -> Origin:
        return lambda: self._where(path)

    def _where(self, path: Path) -> str:
        """The line at which a key, or else the table that it is in, first appears."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}, line {self.lines[path]}" if path else self.name

    @cached_property
    def lines(self) -> Mapping[Path, int]:
        """Key or table -> the line on which it starts.

        tomli gives values without their places. A statement alone (a header, a key with its value) is TOML
        too: we collect lines until they parse.
        """
        found: dict[Path, int] = {}
        table: Path = ()
        start, chunk = 1, ""
        for number, line in enumerate(self.text.splitlines(keepends=True), start=1):
            if not chunk:
                start = number
            chunk += line
            try:
                parsed = tomli.loads(chunk)
            except tomli.TOMLDecodeError:
                continue
            if chunk.lstrip().startswith("["):
                table = next(_keys(parsed))
                found.setdefault(table, start)
            else:
                for path in _keys(parsed):
                    for end in range(1, len(path) + 1):
                        found.setdefault((*table, *path[:end]), start)
            chunk = ""
        return found


def _keys(parsed: Mapping[str, Any]) -> Iterator[Path]:
    """The innermost keys of nested tables."""
    for key, value in parsed.items():
        if isinstance(value, dict) and value:
            for path in _keys(value):
                yield (key, *path)
        else:
            yield (key,)


def _near_files(path: FilePath) -> str:
    try:
        names = sorted(other.name for other in path.parent.iterdir() if other.suffix == ".toml")
    except OSError:
        return f"there is no folder '{path.parent}' either"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean '{path.with_name(near[0])}'?" if near else ""


@dataclass
class Values:
    """Values by path, each with its origin; what is merged later counts."""

    values: dict[Path, Any] = field(default_factory=dict)
    origins: dict[Path, Origin] = field(default_factory=dict)

    def merge(self, tables: Mapping[str, Any], origin: Callable[[Path], Origin], at: Path = ()) -> None:
        """Lay tables over what is there: tables merge, other values replace."""
        for key, value in tables.items():
            path = (*at, key)
            if isinstance(value, Mapping) and (value or self.below(path)):
                self.values.pop(path, None)
                self.merge(value, origin, path)
            else:
                self.remove(path)
                self.values[path] = value
                self.origins[path] = origin(path)

    def below(self, path: Path) -> list[Path]:
        """Paths at or below ``path`` that are set."""
        return [other for other in self.values if other[: len(path)] == path]

    def remove(self, path: Path) -> None:
        for end in range(1, len(path)):
            self.values.pop(path[:end], None)
        for other in self.below(path):
            del self.values[other]

    def move(self, path: Path, to: Path) -> None:
        """Give the value at ``path``, and its origin, another path."""
        self.values[to] = self.values.pop(path)
        self.origins[to] = self.origins[path]

    def origin(self, path: Path) -> str:
        """Where the value at a path, or the next thing around or inside it, was set; empty for a default."""
        inside = self.below(path)
        if inside:
            return self.origins[inside[0]]()
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


def read_files(paths: Sequence[FilePath | str]) -> tuple[list[TomlFile], list[ConfigError]]:
    """Read all files, and say what is wrong with each that cannot be read."""
    files, problems = [], []
    for path in paths:
        try:
            files.append(TomlFile.read(path))
        except ConfigError as e:
            problems.append(e)
    return files, problems
