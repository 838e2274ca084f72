"""``hekaton config check | show | schema``: look at a configuration without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from hekaton.cli.arguments import as_path, load_files, take_number
from hekaton.errors import ConfigError, choices_hint

USAGE = """\
usage: hekaton config check FILE... [flags] [--world_size N]
       hekaton config show FILE... [flags]
       hekaton config show --parallel FILE... [flags] [--world_size N] [--rank R] [--json]
       hekaton config show --converters FILE... [flags]
       hekaton config schema [FILE] [--plugins.load NAME] [--plugins.disable NAME]

check    say what is wrong with a configuration, for N processes where given, or that it is right
show     print every value, and where it comes from; with --parallel the layout instead: the mesh, where each
         parameter lies, the stages, what a rank holds and what it sends in a step, found by taking one step
         on fake tensors as rank R (0) of N processes (by default, as many as the degrees multiply to);
         with --converters which layers each converter takes, and why it leaves the others
schema   write the JSON schema of run files, with the sections of plugins, to FILE or to stdout

'hekaton train --help' lists the flags."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton config ARGUMENTS``."""
    from hekaton.config.flags import wants_help

    if not arguments or wants_help(arguments):
        print(USAGE)
        return 0
    verbs = {"check": check, "show": show, "schema": schema}
    verb, *rest = arguments
    if verb not in verbs:
        raise ConfigError(f"unknown verb 'config {verb}'", hint=choices_hint(verb, verbs))
    verbs[verb](rest)
    return 0


def check(arguments: list[str]) -> None:
    """Print notices and ``OK``, or raise what is wrong."""
    from hekaton.config.base import MAX_PROCESSES
    from hekaton.config.device_defaults import for_device

    world_size, arguments = take_number(arguments, "--world_size", at_least=1, at_most=MAX_PROCESSES)
    loaded = load_files(arguments)
    import torch

    from hekaton.rules import check as check_rules

    fake = loaded.config.comm.mode == "fake_backend"
    # What fake tensors stand for is a cluster's.
    device_type = "cuda" if fake or torch.cuda.is_available() else "cpu"
    loaded = for_device(loaded, device_type)
    notices = [
        *loaded.notices,
        *check_rules(loaded, world_size=world_size, device_type=device_type, here=not fake),
    ]
    for notice in notices:
        print(f"notice: {notice}")
    where = "" if world_size is None else f", {world_size} process{'es' if world_size > 1 else ''}"
    mode = ', comm.mode = "fake_backend"' if fake else ""
    print(f"OK: {loaded.config.model.name} {loaded.config.model.flavor}{where}{mode}")


def show(arguments: list[str]) -> None:
    """Print values and origins, section by section; or the layout, or layers."""
    if "--parallel" in arguments:
        from hekaton.cli.layout import show_layout

        show_layout([argument for argument in arguments if argument != "--parallel"])
        return
    if "--converters" in arguments:
        from hekaton.cli.converters import show_converters

        show_converters([argument for argument in arguments if argument != "--converters"])
        return
    from hekaton.config.base import CompatSection, dotted, is_idle, toml_value, walk

    loaded = load_files(arguments)
    for notice in loaded.notices:
        print(f"notice: {notice}")
    data = loaded.config.model_dump(mode="json")
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for at, field, inside in walk(type(loaded.config)):
        value: Any = data
        for name in at:
            value = value[name]
        origin = _origin(dotted(at), loaded.origins)
        if not origin and (is_idle(field) or issubclass(inside[-1], CompatSection)):
            continue
        row = (at[-1], toml_value(value, width=10_000), origin or "default")
        sections.setdefault(dotted(at[:-1]), []).append(row)
    names = max(len(name) for rows in sections.values() for name, _, _ in rows)
    for section, rows in sections.items():
        print(f"\n[{section}]")
        for name, value, origin in rows:
            print(f"{name:{names}}  {value:24}  {origin}")


def schema(arguments: list[str]) -> None:
    """Write the JSON schema."""
    from hekaton.cli import plugin_flags
    from hekaton.config import json_schema

    flags, arguments = plugin_flags(arguments)
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise ConfigError(
            f"unexpected arguments '{' '.join(arguments)}'", hint="hekaton config schema [FILE]"
        )
    plugins = flags.discover()
    plugins.check()
    text = json.dumps(json_schema(plugins), indent=2) + "\n"
    if not arguments:
        sys.stdout.write(text)
        return
    try:
        as_path(arguments[0]).write_text(text, encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"cannot write '{arguments[0]}': {e.strerror}") from e


def _origin(path: str, origins: Mapping[str, str]) -> str:
    """Where a value, or what is inside it, was set."""
    places = [origins[key] for key in origins if key == path or key.startswith(f"{path}.")]
    return "; ".join(dict.fromkeys(places))
