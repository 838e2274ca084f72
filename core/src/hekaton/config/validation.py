"""What is wrong with values, as sentences; and which of them have no effect or are refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hekaton.config.base import (
    NoEffect,
    NotYet,
    OnlyWith,
    Path,
    SectionModel,
    default_of,
    dotted,
    marks,
    shortened,
    toml_value,
    walk,
)
from hekaton.config.job import JobConfig, class_at, unknown_field_hint
from hekaton.config.sources import Values
from hekaton.errors import ConfigError, HekatonError, choices_hint
from hekaton.plugins import Plugins

_SHOWN = 3
ITS_PLUGINS = (
    "install the plugins that the run had, or name them with --plugins.load, from Python with plugins=[...]"
)
"""The way on where a configuration that was recorded is not taken."""
MAX_PROBLEMS = 50
"""More errors than these are counted and not described."""


def describe(
    error: ValidationError, config: type[JobConfig], values: Values, plugins: Plugins
) -> dict[Path, HekatonError]:
    """An error per wrong value, with the place where it was set."""
    problems: dict[Path, HekatonError] = {}
    details = error.errors(include_url=False, include_context=True)
    for detail in details:
        path, index = _field_path(config, detail["loc"])
        if path in problems:  # another member of the same union
            continue
        if len(problems) == MAX_PROBLEMS:
            problems[("",)] = ConfigError(f"and {len(details) - MAX_PROBLEMS} more values are wrong")
            break
        if detail["type"] == "extra_forbidden" and index:  # a key of an entry of an array of tables
            key, known = str(detail["loc"][-1]), _entry_fields(config, path)
            problems[path] = ConfigError(
                f"unknown field '{shortened(key)}' in [[{dotted(path)}]]",
                origin=values.origin(path),
                hint=choices_hint(key, known),
            )
        elif detail["type"] == "extra_forbidden":
            problems[path] = _unknown(config, path, values, plugins)
        else:
            expected = str(detail.get("ctx", {}).get("expected", ""))
            problems[path] = ConfigError(
                f"{dotted(path)}{index} {described(detail)}",
                origin=values.origin(path),
                hint=_did_you_mean(detail["input"], re.findall("'([^']*)'", expected)),
            )
    return problems


def in_words(error: ValidationError) -> str:
    """What is wrong with a configuration that was recorded, which the plugins of now may not take."""
    details = error.errors(include_url=False)
    wrong = [
        f"nothing that is loaded knows '{dotted(tuple(map(str, detail['loc'])))}'"
        if detail["type"] == "extra_forbidden"
        else f"{dotted(tuple(map(str, detail['loc'])))} {described(detail)}"
        for detail in details[:_SHOWN]
    ]
    more = len(details) - _SHOWN
    return "; ".join(wrong) + (f"; and {more} more" if more > 0 else "")


def described(detail: Any) -> str:
    """What pydantic finds wrong with a value, as the end of a sentence that starts with the field's name."""
    message: str = detail["msg"]
    value = toml_value(detail["input"])
    if message.startswith("Value error, "):
        return f"= {value}: {message.removeprefix('Value error, ')}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return f"must be a table, not {value}"
    for bound in detail.get("ctx", {}).values():
        if isinstance(bound, float):  # pydantic writes 1e-30 with thirty digits
            message = re.sub(r"(than|to) [0-9.]+$", rf"\1 {bound:g}", message)
    if detail["type"] == "string_pattern_mismatch":
        return f"must match {detail['ctx']['pattern']}, not {value}"
    message = re.sub("^Input should be ", "must be ", message).replace("a valid ", "a ")
    message = (
        message.replace("a integer", "an integer")
        .replace("a array", "a list")
        .replace("an object", "a table")
    )
    return f"{message}, not {value}" if message.startswith("must be") else f"= {value}: {message}"


def _field_path(config: type[SectionModel], loc: tuple[int | str, ...]) -> tuple[Path, str]:
    """The part of pydantic's location that people know: sections and field, and ``[index]`` within a list,
    with the field's name where its entries are tables."""
    path: list[str] = []
    owner: type[SectionModel] | None = config
    for number, part in enumerate(loc):
        if owner is None:
            if not isinstance(part, int):
                return tuple(path), ""
            within = loc[number + 1] if len(loc) > number + 1 else None
            named = within in _entry_fields(config, tuple(path))
            return tuple(path), f"[{part}].{within}" if named else f"[{part}]"
        path.append(str(part))
        owner = class_at(owner, (str(part),))
    return tuple(path), ""


def _entry_fields(config: type[SectionModel], path: Path) -> list[str]:
    """The fields of the entries of an array of tables; of another list none."""
    owner = class_at(config, path[:-1])
    assert owner is not None
    for entry in get_args(owner.model_fields[path[-1]].annotation):
        if isinstance(entry, type) and issubclass(entry, SectionModel):
            return list(entry.model_fields)
    return []


def _unknown(config: type[JobConfig], path: Path, values: Values, plugins: Plugins) -> HekatonError:
    *inside, name = path
    is_table = bool(values.below(path)) and values.values.get(path, {}) == {}
    shown = shortened(name)
    if not inside:
        message = f"unknown section [{shown}]" if is_table else f"'{shown}' is outside of any section"
    else:
        what = "section" if is_table else "field"
        message = f"unknown {what} '{shown}' in [{dotted(tuple(inside))}]"
    return ConfigError(message, origin=values.origin(path), hint=unknown_field_hint(config, path, plugins))


def _did_you_mean(value: object, choices: list[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"did you mean '{near[0]}'?" if near else ""


def is_off(path: Path, inside: tuple[type[SectionModel], ...], values: Values) -> Path | None:
    """The switch, of a section around a field, that is off; ``None`` where all are on or it is one itself."""
    for depth, section in enumerate(inside):
        switch = (*path[:depth], section.switch)
        if section.switch and switch != path:
            value = values.values.get(switch, default_of(section.model_fields[section.switch]))
            if value is False:
                return switch
    return None


def notices_and_refusals(
    config: type[JobConfig], values: Values, *, wrong: Collection[Path]
) -> tuple[list[str], list[HekatonError]]:
    """What becomes of values that were set away from their defaults and do not simply take effect.

    :param wrong: paths of values that are wrong anyway, of which no more is said.
    """
    idle: dict[str, list[Path]] = {}
    refusals: list[HekatonError] = []
    for path, field, inside in walk(config):
        value = set_value(path, field, values)
        if value is UNSET or path in wrong:
            continue
        reason = _idle_because(path, field, inside, values)
        if reason:
            idle.setdefault(reason, []).append(path)
            continue
        for mark in marks(field, NotYet):
            if not mark.values or value in mark.values:
                refusals.append(
                    ConfigError(
                        f"{dotted(path)} = {toml_value(value)}: {mark.feature} is not available yet",
                        origin=values.origin(path),
                        hint=f"leave it at {toml_value(default_of(field))}",
                    )
                )
    notices = [
        f"{', '.join(f'{dotted(path)} ({values.origin(path)})' for path in paths)}: no effect: {reason}"
        for reason, paths in idle.items()
    ]
    return notices, refusals


UNSET = object()


def set_value(path: Path, field: FieldInfo, values: Values) -> Any:
    """The value of a field where it is set to something else than its default, else ``UNSET``."""
    below = values.below(path)
    if not below:
        return UNSET
    value: Any = (
        values.values[path] if path in values.values else {p[len(path)]: values.values[p] for p in below}
    )
    return UNSET if value == default_of(field) else value


def _idle_because(
    path: Path, field: FieldInfo, inside: tuple[type[SectionModel], ...], values: Values
) -> str:
    for no_effect in marks(field, NoEffect):
        return no_effect.reason
    switch = is_off(path, inside, values)
    if switch is not None:
        return f"{dotted(switch)} is false"
    conditions = marks(field, OnlyWith)
    owner: Mapping[str, FieldInfo] = inside[-1].model_fields
    for condition in conditions:
        other = (*path[:-1], condition.field)
        if condition.holds(values.values.get(other, default_of(owner[condition.field]))):
            return ""
    section = dotted(path[:-1])
    return (
        f"it needs {' or '.join(f'{section}.{condition}' for condition in conditions)}" if conditions else ""
    )
