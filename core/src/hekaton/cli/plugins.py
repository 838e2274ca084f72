"""``hekaton plugins``: every plugin, where it comes from, what it contributes, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata
import json
import sys

from hekaton.cli import plugin_flags, report
from hekaton.contributions import Contribution
from hekaton.errors import ConfigError
from hekaton.plugins import PluginInfo, Plugins, kind_name
from hekaton.plugins.requirements import unmet

USAGE = """\
usage: hekaton plugins [NAME] [--json] [--available] [--plugins.load NAME]... [--plugins.disable NAME]...

List the installed plugins with their status, distribution, version and module, and what each contributes.
Exits with status 2 when plugins clash or break a rule.

  NAME                     show one plugin or contribution: its section, source file and documentation, and
                           what a run file says to use it
  --json                   print one JSON object: {"plugins": [...], "problems": [...]}
  --available              list plugins that can be installed, from the reviewed list that hekaton ships
  --plugins.load NAME      also load this module, or this .py file, as a plugin
  --plugins.disable NAME   leave this plugin out; so does the environment variable HEKATON_DISABLE=NAME"""

STYLES = {"ok": "green", "disabled": "dim", "incompatible": "yellow", "broken": "red"}


def run(arguments: list[str]) -> int:
    """:returns: 0, or 2 when plugins clash or break a rule; one that merely fails to import is listed."""
    flags, rest = plugin_flags(arguments)
    if set(rest) & {"-h", "--help"}:
        print(USAGE)
        return 0
    names = [argument for argument in rest if not argument.startswith("-")]
    switches = [argument for argument in rest if argument.startswith("-")]
    unknown = [argument for argument in switches if argument not in ("--json", "--available")] + names[1:]
    if unknown:
        raise ConfigError(f"unknown argument '{unknown[0]}' of hekaton plugins", hint=USAGE.splitlines()[0])
    if len(rest) > 1:
        raise ConfigError(f"'{rest[0]}' and '{rest[1]}' do not go together", hint=USAGE.splitlines()[0])
    if switches == ["--available"]:
        print(_available())
        return 0
    plugins = flags.discover()
    if names:
        from hekaton.cli.one_plugin import describe

        print(describe(plugins, names[0]))
    elif switches:
        print(json.dumps(_as_json(plugins), indent=2))
    elif sys.stdout.isatty():
        _print_rich(plugins)
    else:
        print(_as_text(plugins))
    sys.stdout.flush()  # before the problems, where both go to one file
    for problem in plugins.problems:
        report(problem)
    return 2 if plugins.problems else 0


def _available() -> str:
    """The reviewed list, and what of it is installed."""
    from hekaton.plugins.available import available

    lines = []
    for one in available():
        found = _version_of(one.package)
        state = f"installed, {found}" if found else f"pip install {one.package}"
        lines += [f"{one.package}  {state}", f"  {one.summary}"]
        models = f"; models: {', '.join(one.models)}" if one.models else ""
        lines.append(f"  {', '.join(one.kinds)}{models}")
        lines.append(f"  licence {one.licence}, tested with hekaton {one.tested}")
    return "\n".join(lines)


def _version_of(package: str) -> str:
    """The version of a distribution, empty where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _rows(plugins: Plugins, info: PluginInfo) -> list[tuple[str, str, str]]:
    """(kind, name, summary) of everything that one plugin contributes."""
    records = plugins.contributions(info)
    rows = [(kind_name(type(record)), record.name, _summary(record)) for record in records]
    return rows + [("hook", name, "") for name in plugins.lifecycle_hooks(info)]


def _summary(record: Contribution) -> str:
    reason = unmet(record.needs)
    return f"unavailable: {reason}" if reason else record.summary


def _origin(info: PluginInfo) -> str:
    return f"{info.distribution} {info.version}" if info.distribution else "unpackaged"


def _as_json(plugins: Plugins) -> dict[str, object]:
    return {
        "plugins": [
            {
                "name": info.name,
                "status": info.status,
                "reason": info.reason,
                "distribution": info.distribution,
                "version": info.version,
                "module": info.module,
                "contributions": [
                    {"kind": kind, "name": name, "summary": summary}
                    for kind, name, summary in _rows(plugins, info)
                ],
            }
            for info in plugins.infos
        ],
        "problems": [{"message": problem.message, "hint": problem.hint} for problem in plugins.problems],
    }


def _as_text(plugins: Plugins) -> str:
    heads = [(info.name, info.status, _origin(info), info.module) for info in plugins.infos]
    every = [row for info in plugins.infos for row in _rows(plugins, info)]
    head_widths = [max(map(len, column)) for column in zip(*heads, strict=True)]
    row_widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    lines = []
    for info, head in zip(plugins.infos, heads, strict=True):
        lines.append(_aligned(head, head_widths))
        lines += [f"  {_aligned(row, row_widths)}" for row in _rows(plugins, info)]
        lines += [f"  {line}" for line in info.reason.splitlines()]
    return "\n".join(lines)


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _print_rich(plugins: Plugins) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    every = [row for info in plugins.infos for row in _rows(plugins, info)]
    kind_width, name_width, _ = [max(map(len, column), default=0) for column in zip(*every, strict=True)]
    for info in plugins.infos:
        style = STYLES[info.status]
        origin = f"  {_origin(info)}  {info.module}"
        console.print(Text.assemble((info.name, "bold"), "  ", (info.status, style), origin))
        if info.reason:
            console.print(Text(f"  {info.reason}", style))
        table = Table(box=None, show_header=False, padding=(0, 0, 0, 2), pad_edge=True)
        table.add_column(min_width=kind_width, style="dim")
        table.add_column(min_width=name_width)
        table.add_column(overflow="fold")
        for row in _rows(plugins, info):
            table.add_row(*map(Text, row))
        console.print(table)
