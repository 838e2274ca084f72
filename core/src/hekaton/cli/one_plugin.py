"""``hekaton plugins NAME``: a plugin or contribution, with its section, source, page, and use."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from hekaton.contributions import (
    Command,
    Component,
    ContextParallel,
    Contribution,
    Converter,
    Dataset,
    Dispatcher,
    Logger,
    LRSchedule,
    Model,
    Objective,
    Optimizer,
    Order,
    Ref,
    RowMaker,
    Section,
    Tokenizer,
)
from hekaton.errors import HekatonError, UnknownName, choices_hint
from hekaton.plugins import PluginInfo, Plugins, kind_name
from hekaton.plugins.requirements import unmet

USED_BY: Mapping[type[Contribution], tuple[str, str]] = {
    Model: ("model", "name"),
    Tokenizer: ("model", "tokenizer"),
    Converter: ("model", "converters"),
    Dataset: ("training", "dataset"),
    Order: ("training", "order"),
    RowMaker: ("training", "packing"),
    Objective: ("training", "objective"),
    Optimizer: ("optimizer", "name"),
    LRSchedule: ("lr_scheduler", "name"),
    Logger: ("metrics", "loggers"),
    ContextParallel: ("parallelism", "context_parallel_strategy"),
    Dispatcher: ("parallelism", "expert_dispatcher"),
}
"""Kind -> the section and the key of a run file that name one."""
LISTS = (Converter, Logger)


def describe(plugins: Plugins, name: str) -> str:
    """Every plugin, distribution and contribution of a name, in words.

    :raises UnknownName: with the nearest names.
    """
    found = [
        (record, info)
        for info in plugins.infos
        for record in plugins.contributions(info)
        if name in (record.name, info.name, info.distribution)
    ]
    whole = [info for info in plugins.infos if name in (info.name, info.distribution)]
    if not found and not whole:
        known = {info.name for info in plugins.infos}
        known |= {record.name for info in plugins.infos for record in plugins.contributions(info)}
        raise UnknownName(
            f"no installed plugin or contribution is called '{name}'",
            hint=choices_hint(name, known, listed_by="hekaton plugins"),
        )
    found.sort(key=lambda pair: isinstance(pair[0], Section))  # they are shown with what reads them, too
    parts = [_of_plugin(plugins, info) for info in whole]
    return "\n\n".join([*parts, *(_of_record(plugins, record, info) for record, info in found)])


def _of_plugin(plugins: Plugins, info: PluginInfo) -> str:
    rows = {
        "distribution": f"{info.distribution} {info.version}".strip() or "unpackaged",
        "status": f"{info.status}: {info.reason}" if info.reason else info.status,
        "source": _file(info.module),
        "documentation": _address(info) or "docs/contracts/plugin.md",
        "hooks": ", ".join(plugins.lifecycle_hooks(info)) if info.status == "ok" else "",
    }
    return _table(f"plugin {info.name}", rows)


def _of_record(plugins: Plugins, record: Contribution, info: PluginInfo) -> str:
    refs = [value for value in vars(record).values() if isinstance(value, Ref)]
    page = kind_name(type(record)).replace(" ", "-")
    rows = {
        "plugin": info.name,
        "summary": record.summary,
        "needs": ", ".join(record.needs) + (f" ({unmet(record.needs)})" if unmet(record.needs) else ""),
        "source": ", ".join(dict.fromkeys(source_of(ref) for ref in refs)),
        "documentation": ", ".join(filter(None, [_address(info), f"docs/contracts/{page}.md"])),
    }
    text = _table(f"{kind_name(type(record))} {record.name}", rows)
    section = _section(plugins, record)
    if isinstance(record, Command):
        return f"{text}\n\n  hekaton {record.name} --help"
    used = _toml(record, section)
    return f"{text}\n\n{_indented(used)}" if used else text


def source_of(ref: Ref) -> str:
    """The file and line of what a Ref names, found without importing it; empty where there is none.
    A file that Python cannot read is named with the reason."""
    module, _, attribute = ref.target.partition(":")
    path = _file(module)
    if not path.endswith(".py"):
        return path
    try:
        module_body = ast.parse(Path(path).read_bytes(), path).body
    except (OSError, SyntaxError, ValueError) as e:
        return f"{path} ({type(e).__name__}: {e})"
    for node in module_body:
        names = [getattr(node, "name", "")]
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        if attribute.partition(".")[0] in names:
            return f"{path}:{node.lineno}"
    return path


def _file(module: str) -> str:
    if module.endswith(".py"):
        return module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, SyntaxError, ValueError):
        return ""
    return (spec.origin or "") if spec is not None else ""


def _address(info: PluginInfo) -> str:
    """Where the distribution says that it is described."""
    if not info.distribution:
        return ""
    try:
        metadata = importlib.metadata.metadata(info.distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
    urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL") or [] if ", " in line)
    lower = {label.lower(): url for label, url in urls.items()}
    return next((lower[label] for label in ("documentation", "homepage", "repository") if label in lower), "")


def _section(plugins: Plugins, record: Contribution) -> Section | None:
    if isinstance(record, Section):
        return record
    if not isinstance(record, Component):
        return None
    try:
        path = plugins.section_of(record)
    except HekatonError:
        return None
    return plugins.all(Section)[path].record if path else None


def _toml(record: Contribution, section: Section | None) -> str:
    """What a run file says to use it: its name, and its section with the defaults."""
    content: dict[str, Any] = {}
    if type(record) in USED_BY:
        table, key = USED_BY[type(record)]
        content[table] = {key: [record.name] if type(record) in LISTS else record.name}
    text = tomli_w.dumps(content, indent=0) if content else ""
    text = text.replace("[\n", "[").replace(",\n]", "]")
    if section is not None and not section.needs:
        text += ("\n" if text else "") + _section_toml(section)
    return text.rstrip()


def _section_toml(section: Section) -> str:
    from hekaton.config.job import schema_of

    lines = [f"[{section.name}]"]
    try:
        schema = schema_of(section)
    except HekatonError as e:
        return "\n".join([*lines, *(f"# {line}" for line in str(e).splitlines())])
    for name, described in schema.model_fields.items():
        help_text = " ".join((described.description or "").split())
        required = described.is_required()
        default: Any = None if required else described.get_default(call_default_factory=True)
        plain = default.model_dump() if hasattr(default, "model_dump") else default
        try:
            written = tomli_w.dumps({name: plain}).strip() if plain is not None else f"# {name} ="
        except TypeError:
            written = f"# {name} ="
        if "\n" in written:
            written = f"# {name} = ..."
        lines += [f"# {help_text}"] if help_text else []
        lines.append(written)
    return "\n".join(lines)


def _table(title: str, rows: Mapping[str, str]) -> str:
    shown = {name: value for name, value in rows.items() if value}
    width = max(map(len, shown))
    return "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in shown.items())])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
