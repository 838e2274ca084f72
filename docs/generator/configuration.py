"""The configuration reference: every section with its fields, types, defaults and constraints."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic.fields import FieldInfo

from generator.installed import plugins
from generator.markdown import code, parse, table
from hekaton.config import JobConfig, SectionModel
from hekaton.config.base import (
    CompatSection,
    NameOf,
    NoEffect,
    NotYet,
    OnlyWith,
    Renamed,
    default_of,
    dotted,
    marks,
    section_class,
    toml_value,
    walk,
)
from hekaton.contributions import Section
from hekaton.plugins import CONTRIBUTION_HOOKS, kind_name

INTRODUCTION = """\
# Configuration

A run is described by TOML files and flags. Every field below is a TOML key of its section and a flag:

```toml
[training]
steps = 100
```

is `--training.steps 100`. Booleans are also flags by themselves, `--checkpoint.enable` and
`--checkpoint.no-enable`; lists are written `a,b,c`. What is given later wins: defaults, then the flavor's
defaults, then TOML files from left to right, then flags. A list that is given by two flags is longer; of
another flag that is given twice the last one is used, with a notice.

An unknown section or field, a wrong type or a value out of range is an error that names file and line.
`hekaton config check FILE` checks without training, `hekaton config show FILE` prints every value and where
it comes from, `hekaton config schema` writes the JSON schema for editors, with the sections of the plugins
that are installed.
"""


NOT_AVAILABLE = """\
## Not available yet

These fields are refused when they are set away from their default:
"""

COMPATIBILITY = """\
## Sections of torchtitan

Run files for torchtitan have these sections. They are accepted, and each field says what becomes of it. A
plugin that contributes a section of the same path takes its place.
"""


def page() -> str:
    own, compatible = [], []
    for name, field in JobConfig.model_fields.items():
        schema = section_class(field)
        assert schema is not None
        if issubclass(schema, CompatSection):
            compatible += sections(name, schema, level="###")
        else:
            own += sections(name, schema)
    for path, contributed in sorted(plugins().all(Section).items()):
        plugin = contributed.plugin
        joins = f"Further fields of `[{contributed.record.joins}]`. " if contributed.record.joins else ""
        owner = f"{joins}Owned by the plugin `{plugin.name}` (`{plugin.distribution}`)"
        owner += f": {contributed.record.summary}."
        own += sections(contributed.record.joins or path, contributed.record.schema.load(), note=owner)
    parts = [INTRODUCTION, *own, COMPATIBILITY, *compatible, NOT_AVAILABLE, not_available()]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def sections(path: str, schema: type[SectionModel], *, note: str = "", level: str = "##") -> list[str]:
    """A section and those inside it."""
    rows = []
    nested = []
    for name, field in schema.model_fields.items():
        inner = section_class(field)
        if inner is not None:
            nested += sections(f"{path}.{name}", inner, level=level)
        else:
            rows.append([code(name), type_text(field), default_text(field), meaning(field)])
    parts = [
        f"{level} [{path}]",
        note,
        "" if schema.__doc__ == SectionModel.__doc__ else parse(schema.__doc__).text,
    ]
    if schema.switch:
        parts.append(f"The other fields have an effect only with `{schema.switch} = true`.")
    if rows:
        parts.append(table(["field", "type", "default", "meaning"], rows))
    return [*parts, *nested]


def type_text(field: FieldInfo) -> str:
    return " ".join([annotation_text(field.annotation), *bounds(field.metadata)])


def annotation_text(annotation: Any) -> str:
    """A type as a user of TOML would call it; ``None`` is what not setting the key means."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return ""
    if origin is typing.Annotated:
        return " ".join([annotation_text(arguments[0]), *bounds(arguments[1:])])
    if origin is typing.Literal:
        return ", ".join(code(json.dumps(choice)) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(filter(None, map(annotation_text, arguments))))
    if origin is list:
        return f"list of {annotation_text(arguments[0])}"
    if origin is dict:
        return "table"
    return WORDS.get(annotation) or code(getattr(annotation, "__name__", annotation))


WORDS = {str: "string", int: "integer", float: "number", bool: "boolean", list: "list", dict: "table"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def bounds(metadata: Iterable[object]) -> list[str]:
    """The constraints on numbers and lengths among the metadata of a type."""
    words = []
    for part in metadata:
        inner = part.metadata if isinstance(part, FieldInfo) else [part]
        for each in inner:
            words += [
                f"{sign} {_number(getattr(each, name))}"
                for name, sign in BOUNDS.items()
                if hasattr(each, name)
            ]
            if hasattr(each, "min_length"):
                words.append(f"(at least {each.min_length})")
    return words


def default_text(field: FieldInfo) -> str:
    value = default_of(field)
    return "" if value is None else code(toml_value(value))


def meaning(field: FieldInfo) -> str:
    """The field's docstring, and what becomes of it."""
    words = [parse(field.description).text]
    words += [f"Contributed [{noun(mark)}](hooks.md#{hook(mark)})." for mark in marks(field, NameOf)]
    if only := marks(field, OnlyWith):
        words.append("Only with " + " or ".join(code(mark) for mark in only) + ".")
    words += [f"**Not available yet**{_values(mark)}: {mark.feature}." for mark in marks(field, NotYet)]
    words += [f"**Renamed** to `{mark.to}`." for mark in marks(field, Renamed)]
    words += [f"**No effect**: {mark.reason}." for mark in marks(field, NoEffect)]
    return " ".join(words)


def _values(mark: NotYet) -> str:
    return f" as {' or '.join(code(toml_value(value)) for value in mark.values)}" if mark.values else ""


def not_available() -> str:
    """What the configuration knows and hekaton cannot do yet, with the fields that ask for it."""
    rows = [
        [mark.feature, code(dotted(path)) + _values(mark)]
        for path, field, _ in walk(JobConfig)
        for mark in marks(field, NotYet)
    ]
    return table(["feature", "field"], rows)


def noun(mark: NameOf) -> str:
    return f"{kind_name(mark.kind)}s"


def hook(mark: NameOf) -> str:
    return next(name for name, kind in CONTRIBUTION_HOOKS.items() if kind is mark.kind)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
