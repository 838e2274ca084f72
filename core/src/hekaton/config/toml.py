"""TOML files: read within bounds, with the line of every key."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import tomli

from hekaton.config.base import Path
from hekaton.config.plain import MAX_DEPTH, check_plain
from hekaton.errors import ConfigError
from hekaton.paths import expanded

MAX_BYTES = 4 * 2**20
"""The largest run file that is read."""
_QUOTED_CHARACTERS = 200


@dataclass(frozen=True)
class TomlFile:
    """A TOML file, read and parsed."""

    name: str
    text: str
    tables: Mapping[str, Any]

    @classmethod
    def read(cls, path: FilePath | str) -> TomlFile:
        """:raises ConfigError: when there is no such file, it is no TOML, or it is out of bounds."""
        name = os.fspath(path)
        try:
            path = expanded(name)
        except ValueError as e:
            raise ConfigError(f"cannot read '{name}': {e}") from e
        try:
            mode = FilePath(path).stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what is opened may wait, or act
                raise ConfigError(f"cannot read '{name}': it is not a regular file")
            with FilePath(path).open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except FileNotFoundError as e:
            raise ConfigError(f"there is no file '{name}'", hint=_near_files(FilePath(path))) from e
        except OSError as e:
            raise ConfigError(f"cannot read '{name}': {e.strerror}") from e
        if len(data) > MAX_BYTES:
            raise ConfigError(f"'{name}' has more than {MAX_BYTES // 2**20} MiB, too much for a run file")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            line = data.count(b"\n", 0, e.start) + 1
            raise ConfigError(
                f"byte {data[e.start]:#04x} is not UTF-8, which TOML is written in",
                origin=f"{name}, line {line}",
            ) from e
        try:
            tables = tomli.loads(text)
        except tomli.TOMLDecodeError as e:
            raise _syntax_error(name, text, e) from e
        except (RecursionError, ValueError) as e:
            raise _out_of_bounds(name, text, e) from e
        file = cls(name, text, tables)
        check_plain(tables, (), lambda path: file.origin(path)())
        return file

    def origin(self, path: Path) -> Callable[[], str]:
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
        too.
        """
        found: dict[Path, int] = {}
        table: Path = ()
        for start, statement in statements(self.text):
            parsed = tomli.loads(statement)
            is_header = statement.lstrip().startswith("[")
            table = () if is_header else table
            for path in _keys(parsed):
                for end in range(1, min(len(path), MAX_DEPTH) + 1):
                    found.setdefault((*table, *path[:end]), start)
            table = next(_keys(parsed)) if is_header else table
        return found


_TOKENS = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}'''  # up to two quotes may stand before the closing three
    r"""|'''(?:[^']|'{1,2}(?!'))*+'{3,5}"""
    r'''|"(?:[^"\\\n]|\\.)*+"'''
    r"""|'[^'\n]*+'"""
    r"""|\#[^\n]*+"""
    r"""|(?P<open>[\[{])|(?P<close>[\]}])|(?P<newline>\n)""",
    re.DOTALL,
)


def statements(text: str) -> Iterator[tuple[int, str]]:
    """The headers and the keys with their values of a TOML text, each with the number of its first line.

    A statement ends at a line break outside of strings and brackets.
    """
    start = depth = 0
    line = next_line = 1
    for token in _TOKENS.finditer(text):
        next_line += token[0].count("\n")
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        elif token["newline"] and depth <= 0:
            yield line, text[start : token.end()]
            start, line, depth = token.end(), next_line, 0
    yield line, text[start:]


def read_files(paths: Sequence[FilePath | str]) -> tuple[list[TomlFile], list[ConfigError]]:
    """Read all files, and say what is wrong with each that cannot be read."""
    files, problems = [], []
    for path in paths:
        try:
            files.append(TomlFile.read(path))
        except ConfigError as e:
            problems.append(e)
    return files, problems


def _syntax_error(name: str, text: str, error: tomli.TOMLDecodeError) -> ConfigError:
    lines = [*text.splitlines(), ""]
    number = min(error.lineno, len(lines))
    if number == len(lines) > 1:  # the end of the file: show the last line that there is
        number -= 1
    quoted = lines[number - 1].strip()
    if len(quoted) > _QUOTED_CHARACTERS:
        quoted = f"{quoted[: _QUOTED_CHARACTERS - 3]}..."
    return ConfigError(
        f"TOML syntax: {error.msg[:1].lower()}{error.msg[1:]}",
        origin=f"{name}, line {number}",
        hint=quoted,
    )


def _out_of_bounds(name: str, text: str, error: Exception) -> ConfigError:
    """What is TOML, and more than tomli or Python take; the line is that of the statement."""
    message = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
    for line, statement in statements(text):
        try:
            tomli.loads(statement)
        except (RecursionError, ValueError) as e:
            if type(e) is type(error):
                return ConfigError(f"TOML: {message}", origin=f"{name}, line {line}")
    return ConfigError(f"TOML: {message}", origin=name)


def _keys(parsed: Mapping[str, Any]) -> Iterator[Path]:
    """The innermost keys of nested tables; of tables that are nested too deeply the first keys of each.

    Generators within generators, 900 deep, abort Python 3.12.1.
    """
    left: list[tuple[Path, Any]] = [((), parsed)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict) and value and len(path) <= MAX_DEPTH:
            left += [((*path, key), inner) for key, inner in reversed(value.items())]
        elif path:
            yield path


def _near_files(path: FilePath) -> str:
    try:
        names = sorted(other.name for other in path.parent.iterdir() if other.suffix == ".toml")
    except OSError:
        return f"there is no folder '{path.parent}' either"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean '{path.with_name(near[0])}'?" if near else ""
