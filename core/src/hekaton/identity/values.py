"""The values of a run by dotted name, with what is declared of each: of its sections, and of its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_type_hints

from hekaton.config import as_dict
from hekaton.config.base import (
    AtResume,
    AtResumeMeaning,
    Path,
    at_resume,
    dotted,
    may_differ,
    shortened,
    toml_value,
    walk,
)

if TYPE_CHECKING:
    from hekaton.config import JobConfig

Values = Mapping[str, Any]
"""Dotted name -> a value as JSON has it."""


def config_values(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that was written as tables, by dotted name."""
    return dict(_flat(tables, ()))


def common_values(config: JobConfig) -> dict[str, Any]:
    """The values that all processes of a run must have in common."""
    free = {dotted(path) for path, field, inside in walk(type(config)) if may_differ(field, inside)}
    below = tuple(f"{name}." for name in free)
    return {
        name: value
        for name, value in config_values(as_dict(config)).items()
        if name not in free and not name.startswith(below)
    }


def config_meanings(config: type[JobConfig]) -> dict[str, AtResumeMeaning]:
    """What a change of each field means at a resume."""
    return {dotted(path): at_resume(field, inside) for path, field, inside in walk(config)}


def model_values(settings: Any) -> dict[str, Any]:
    """The values of a model's configuration, a dataclass, as ``model.FIELD``."""
    return dict(_of_dataclass(settings, "model"))


def model_meanings(settings: Any) -> dict[str, AtResumeMeaning]:
    """What a change of each field of a model's configuration means at a resume; a notice where it has no
    :class:`AtResume`."""
    return dict(_meanings(settings, "model", "notice"))


def meaning_of(name: str, meanings: Mapping[str, AtResumeMeaning]) -> AtResumeMeaning:
    """What is declared of a value, or of the nearest table around it."""
    while name:
        if name in meanings:
            return meanings[name]
        name = name.rpartition(".")[0]
    return "notice"


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else str(value)


def shown(value: Any, *, width: int = 60) -> str:
    """A value for a message: versions and digests are no strings of TOML to its reader."""
    if isinstance(value, str) and value and value.isprintable():
        return shortened(value, width)
    return "not set" if value is None else toml_value(value, width=width)


def _flat(tables: Mapping[str, Any], at: Path) -> Iterator[tuple[str, Any]]:
    """Of a list of tables, too: its entries are numbered from 0."""
    for name, value in tables.items():
        if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            value = {str(number): one for number, one in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _flat(value, (*at, name))
        else:
            yield dotted((*at, name)), value


def _of_dataclass(settings: Any, at: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield f"{at}.{field.name}", type(value).__name__
            yield from _of_dataclass(value, f"{at}.{field.name}")
        else:
            yield f"{at}.{field.name}", plain(value)


def _meanings(settings: Any, at: str, default: AtResumeMeaning) -> Iterator[tuple[str, AtResumeMeaning]]:
    try:
        hints = get_type_hints(type(settings), include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations of names that exist for type checkers only
        hints = {}
    for field in dataclasses.fields(settings):
        marks = getattr(hints.get(field.name), "__metadata__", ())
        own = next((mark.meaning for mark in marks if isinstance(mark, AtResume)), default)
        yield f"{at}.{field.name}", own
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _meanings(value, f"{at}.{field.name}", own)
