"""``hekaton config check | show | schema``: look at a configuration without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from hekaton.config import Loaded

USAGE = """\
usage: hekaton config check FILE... [flags] [--world_size N]
       hekaton config show FILE... [flags]
       hekaton config schema [FILE] [--plugins.load NAME] [--plugins.disable NAME]

check    say what is wrong with a configuration, for N processes where given, or that it is right
show     print every value, and where it comes from
schema   write the JSON schema of run files, with the sections of plugins, to FILE or to stdout

'hekaton train --help' lists the flags."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton config ARGUMENTS``."""
    from hekaton.config.flags import wants_help

    if not arguments or wants_help(arguments):
        print(USAGE)
        return 0
    verbs = {"check": check, "show": show, "schema": schema}
    verb, *words = arguments
    if verb not in verbs:
        raise ConfigError(f"unknown verb 'config {verb}'", hint=choices_hint(verb, verbs))
    verbs[verb](words)
    return 0


def check(words: list[str]) -> None:
    """Print notices and ``OK``, or raise what is wrong."""
    from hekaton.config import check as check_rules

    world_size, words = _world_size(words)
    loaded = _load(words)
    import torch

    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    notices = [*loaded.notices, *check_rules(loaded, world_size=world_size, device_type=device_type)]
    for notice in notices:
        print(f"notice: {notice}")
    where = "" if world_size is None else f", {world_size} process{'es' if world_size > 1 else ''}"
    print(f"OK: {loaded.config.model.name} {loaded.config.model.flavor}{where}")


def show(words: list[str]) -> None:
    """Print values and origins, section by section."""
    from hekaton.config.base import CompatSection, dotted, is_idle, toml_value, walk

    loaded = _load(words)
    for notice in loaded.notices:
        print(f"notice: {notice}")
    data = loaded.config.model_dump(mode="json")
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for path, field, inside in walk(type(loaded.config)):
        value: Any = data
        for name in path:
            value = value[name]
        origin = _origin(dotted(path), loaded.origins)
        if not origin and (is_idle(field) or issubclass(inside[-1], CompatSection)):
            continue
        row = (path[-1], toml_value(value, width=10_000), origin or "default")
        sections.setdefault(dotted(path[:-1]), []).append(row)
    names = max(len(name) for rows in sections.values() for name, _, _ in rows)
    for section, rows in sections.items():
        print(f"\n[{section}]")
        for name, value, origin in rows:
            print(f"{name:{names}}  {value:24}  {origin}")


def schema(words: list[str]) -> None:
    """Write the JSON schema."""
    from hekaton.cli import plugin_flags
    from hekaton.config import json_schema

    flags, words = plugin_flags(words)
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise ConfigError(f"unexpected words '{' '.join(words)}'", hint="hekaton config schema [FILE]")
    plugins = flags.discover()
    plugins.check()
    text = json.dumps(json_schema(plugins), indent=2) + "\n"
    if not words:
        sys.stdout.write(text)
        return
    try:
        Path(words[0]).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"cannot write '{words[0]}': {e.strerror}") from e


def _load(words: list[str]) -> Loaded:
    from hekaton.config import load
    from hekaton.config.flags import split_files

    files, flags = split_files(words)
    return load(files, flags)


def _world_size(words: list[str]) -> tuple[int | None, list[str]]:
    """Take ``--world_size N`` out of the words."""
    world_size = None
    others = []
    rest = iter(words)
    for word in rest:
        flag, equals, value = word.partition("=")
        if flag != "--world_size":
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value.isdecimal() or int(value) == 0:
            raise ConfigError(f"--world_size needs a positive number, not '{value}'")
        world_size = int(value)
    return world_size, others


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """Where a value, or what is inside it, was set."""
    places = [origins[key] for key in origins if key == path or key.startswith(f"{path}.")]
    return "; ".join(dict.fromkeys(places))
