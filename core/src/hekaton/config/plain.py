"""Plain values, as TOML and JSON give them, within bounds that the rest of the configuration relies on."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping
from typing import Any

from hekaton.config.base import Path, dotted, shortened
from hekaton.errors import ConfigError

MAX_DEPTH = 32
"""Tables and lists inside each other."""
INTEGERS = range(-(2**63), 2**63)
"""What TOML promises for integers, and what fits torch's."""


def plain_value(value: Any, depth: int = 0) -> Any:
    """A value as a TOML file would have it; what is deeper than any of these is left to be refused."""
    if depth > MAX_DEPTH + 1:
        return None
    if isinstance(value, Mapping):
        return {str(key): plain_value(inside, depth + 1) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inside, depth + 1) for inside in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)  # numpy's, too
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def check_plain(value: Any, path: Path, origin: Callable[[Path], str]) -> None:
    """Check that a value is not nested too deeply, its integers have 64 bits, and its text is Unicode.

    :param path: where the value is, :param origin: says where the value at a path was set.
    :raises ConfigError: for the first value that is not so.
    """
    if len(path) > MAX_DEPTH:
        start = shortened(dotted(path[:3]))
        raise ConfigError(
            f"{start}...: tables and lists are nested more than {MAX_DEPTH} levels deep", origin=origin(path)
        )
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(key, path, origin)
            check_plain(inner, (*path, key), origin)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, (*path, "[]") if isinstance(inner, list | dict) else path, origin)
    elif isinstance(value, str):
        _check_text(value, path, origin)
    elif isinstance(value, int) and value not in INTEGERS:
        raise ConfigError(
            f"{shortened(dotted(path))} is an integer of more than 64 bits", origin=origin(path)
        )


def _check_text(text: str, path: Path, origin: Callable[[Path], str]) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as e:  # bytes of a command line that are no UTF-8
        raise ConfigError(
            f"{shortened(dotted(path))}: character {e.start + 1} is not valid Unicode", origin=origin(path)
        ) from e
