"""A configuration written out again: as a dict, as TOML, and its JSON schema."""

from __future__ import annotations

from typing import Any

from hekaton.config.base import CompatSection, NameOf, Path, is_idle, marks, walk
from hekaton.config.job import JobConfig, config_class
from hekaton.plugins import Plugins

LEFT_OUT = {("job", "config_file")}


def as_dict(config: JobConfig) -> dict[str, Any]:
    """Every value as plain data, by section.

    Left out are fields that are not set (``None``), fields without effect that have their defaults, and the
    names of the files that all of this was read from.
    """
    tables: dict[str, Any] = {}
    data = config.model_dump(mode="json")
    for path, field, inside in walk(type(config)):
        value: Any = data
        for name in path:
            value = value[name]
        idle = is_idle(field) or issubclass(inside[-1], CompatSection)
        default = field.get_default(call_default_factory=True)
        if value is None or path in LEFT_OUT or (idle and value == default):
            continue
        table = tables
        for name in path[:-1]:
            table = table.setdefault(name, {})
        table[path[-1]] = _without_none(value)
    return tables


def _without_none(value: Any) -> Any:
    """Entries without their keys that are not set, for which TOML has no word."""
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if item is not None}
    return value


def to_toml(config: JobConfig) -> str:
    """TOML that loads to the same configuration, with the same plugins."""
    import tomli_w

    return tomli_w.dumps(as_dict(config))


def json_schema(plugins: Plugins) -> dict[str, Any]:
    """The JSON schema of run files, with the sections of plugins, for editors that complete and check TOML.

    :raises HekatonError: when a plugin's section cannot be added.
    """
    config, problems = config_class(plugins)
    for problem in problems:
        raise problem
    schema = config.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "hekaton run"}
    for path, field, _ in walk(config):
        entry = _entry(schema, path)
        for name_of in marks(field, NameOf):
            target = entry.get("items", entry)
            target["examples"] = sorted(plugins.all(name_of.kind))
        if is_idle(field):
            entry["deprecated"] = True
    return schema


def _entry(schema: dict[str, Any], path: Path) -> dict[str, Any]:
    """The place of a field in a schema."""
    node = schema
    for name in path:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
        node = node["properties"][name]
    return node
