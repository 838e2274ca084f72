"""Patterns over dotted names, as the plan and the init table write them.

``*`` stands for one component (``layers.*.attention``) or a part of one, ``**`` for any number of components,
none included (``layers.**.weight``), ``{a,b}`` for alternatives inside a component.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from hekaton.errors import ConfigError, choices_hint

T = TypeVar("T")


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a pattern, to be used with ``fullmatch``.

    :raises ConfigError: for what is no pattern.
    """
    return re.compile("".join(_component(component, pattern) for component in pattern.split(".")))


def pattern_of(pattern: str, field: str) -> re.Pattern[str]:
    """As :func:`compile_pattern`, of what a field of the configuration has.

    :raises ConfigError: for what is no pattern, naming the field.
    """
    try:
        return compile_pattern(pattern)
    except ConfigError as e:
        raise ConfigError(f"{field}: {e.message}", hint=e.hint, fields=[field]) from None


_GRAMMAR = re.compile(r"(?:\*(?!\*)|[^*{}]|\{ *[^*{}, ]+ *(?:, *[^*{}, ]+ *)*\})+")


def _component(component: str, pattern: str) -> str:
    start = r"(?:^|\.)"
    if component == "**":
        return f"(?:{start}[^.]+)*"
    if not _GRAMMAR.fullmatch(component):
        raise ConfigError(
            f"'{pattern}' is no pattern: '{component}' is no component of one",
            hint="a component is a name, in which * is some text and {a,b} one of several, or ** alone, for "
            "any number of components",
        )
    return start + "".join(map(_piece, re.split(r"(\*|\{[^{}]*\})", component)))


def _piece(piece: str) -> str:
    if piece == "*":
        return r"[^.]+"
    if piece.startswith("{"):
        return f"(?:{'|'.join(re.escape(choice.strip()) for choice in piece[1:-1].split(','))})"
    return re.escape(piece)


def with_owners(name: str) -> Iterator[str]:
    """A module's name, then those of the modules around it, outwards."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def without_numbers(name: str) -> str:
    """A pattern of a name and those that differ from it in numbers (``layers.*.attention``)."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def resolve(table: Mapping[str, T], names: Iterable[str], *, what: str) -> dict[str, T]:
    """Expand a table of patterns over ``names``: each name that an entry matches, with that entry's value.

    :param what: what the table is, for messages (``"init table of llama3"``).
    :raises ConfigError: for an entry that matches no name, and for a name that two entries match.
    """
    known = list(names)
    values: dict[str, T] = {}
    entry_of: dict[str, str] = {}
    for pattern, value in table.items():
        matched = [name for name in known if compile_pattern(pattern).fullmatch(name)]
        if not matched:
            shapes = {without_numbers(name) for name in known}
            raise ConfigError(
                f"{what}: entry '{pattern}' matches nothing", hint=choices_hint(pattern, shapes)
            )
        for name in matched:
            if name in entry_of:
                raise ConfigError(f"{what}: both '{entry_of[name]}' and '{pattern}' match '{name}'")
            entry_of[name] = pattern
            values[name] = value
    return values
