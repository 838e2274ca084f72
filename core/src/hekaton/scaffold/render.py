"""Templates to the modules of a new package: names replaced, and what was not asked for left out."""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files

from hekaton.scaffold.kinds import Chosen

TEMPLATES = "hekaton.scaffold.templates"
WIDTH = 110


def modules(found: Sequence[Chosen], *, package: str, distribution: str) -> dict[str, str]:
    """Name of each module -> its source.

    :param package: what the modules import each other from.
    """
    names = {one.kind.token: one.name for one in found} | {"template_distribution": distribution}
    tokens = {one.kind.token for one in found}
    with_sections = {one.kind.token for one in found if one.kind.section}
    rendered = {"__init__": _plugin(found, tokens=tokens, with_sections=with_sections)}
    if with_sections:
        rendered["settings"] = _settings(with_sections)
    for one in found:
        rendered |= {file: template(file) for file in one.kind.files}
    return {
        name: _in_blocks(_renamed(source, names, package=package), package=package)
        for name, source in rendered.items()
    }


def template(name: str) -> str:
    """The source of a module of the templates."""
    return (files(TEMPLATES) / f"{name}.py").read_text(encoding="utf-8")


def _plugin(found: Sequence[Chosen], *, tokens: Collection[str], with_sections: Collection[str]) -> str:
    source = template("__init__")
    hooks = {hook for one in found for hook in one.kind.hooks}
    if with_sections:
        hooks.add("hekaton_sections")
    dropped: set[int] = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and "hekaton_step_ended" not in hooks:  # types of that hook
            dropped |= _lines(statement)
        if not isinstance(statement, ast.FunctionDef):
            continue
        if statement.name not in hooks:
            dropped |= _lines(statement)
        elif statement.name == "hekaton_sections":
            for call in ast.walk(statement):
                if isinstance(call, ast.Call) and _first(call).startswith("template_"):
                    dropped |= set() if _first(call) in with_sections else _lines(call)
    if "template_encoder" not in tokens:
        dropped |= {
            number
            for number, line in enumerate(source.splitlines(), start=1)
            if 'encoder="template_encoder"' in line
        }
    return _without(source, dropped)


def _settings(tokens: Collection[str]) -> str:
    """The sections that the records of these contributions name."""
    schemas = {
        _first(call): keyword.value.args[0].value.partition(":")[2]
        for call in ast.walk(ast.parse(template("__init__")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Section"
        for keyword in call.keywords
        if keyword.arg == "schema"
        and isinstance(keyword.value, ast.Call)
        and isinstance(keyword.value.args[0], ast.Constant)
        and isinstance(keyword.value.args[0].value, str)
    }
    wanted = {schemas[token] for token in tokens}
    source = template("settings")
    dropped: set[int] = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ClassDef) and statement.name not in wanted:
            dropped |= _lines(statement)
    return _without(source, dropped)


def _first(call: ast.Call) -> str:
    value = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
    return value if isinstance(value, str) else ""


def _lines(node: ast.stmt | ast.expr) -> set[int]:
    decorators = getattr(node, "decorator_list", [])
    begin = min([node.lineno, *(one.lineno for one in decorators)])
    assert node.end_lineno is not None
    return set(range(begin, node.end_lineno + 1))


def _without(source: str, dropped: Collection[int]) -> str:
    """The source without these lines, and without imports that it then has no use for."""
    text = "".join(
        line for number, line in enumerate(source.splitlines(keepends=True), start=1) if number not in dropped
    )
    while "\n\n\n\n" in text:
        text = text.replace("\n\n\n\n", "\n\n\n")
    return text.rstrip() + "\n"


def _renamed(source: str, names: Mapping[str, str], *, package: str) -> str:
    source = source.replace(TEMPLATES, package)
    for token, name in names.items():
        source = source.replace(token, name)
    return source


def _in_blocks(source: str, *, package: str) -> str:
    """With its imports as a package has them that is not hekaton's: the standard library, other
    distributions, its own modules; names that nothing uses are left out."""
    tree = ast.parse(source)
    imports = [one for one in tree.body if isinstance(one, ast.Import | ast.ImportFrom)]
    if not imports:
        return source
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    blocks: dict[int, list[tuple[bool, str, str]]] = {0: [], 1: [], 2: [], 3: []}
    for one in imports:
        module = one.module or "" if isinstance(one, ast.ImportFrom) else one.names[0].name
        names = [
            alias
            for alias in one.names
            if module == "__future__" or (alias.asname or alias.name).partition(".")[0] in used
        ]
        if names:
            top = module.partition(".")[0]
            place = 0 if top == "__future__" else 1 if top in sys.stdlib_module_names else 2
            place = 3 if top == package else place
            line = _import_line(one, names)
            blocks[place].append((isinstance(one, ast.ImportFrom), module, line))
    text = "\n\n".join("\n".join(line for *_, line in sorted(block)) for block in blocks.values() if block)
    lines = source.splitlines(keepends=True)
    before = "".join(lines[: imports[0].lineno - 1])
    end = imports[-1].end_lineno
    assert end is not None
    after = "".join(lines[end:]).lstrip("\n")
    apart = 3 if after.startswith(("def ", "class ", "@")) else 2
    return f"{before}{text}{apart * chr(10)}{after}"


def _import_line(statement: ast.Import | ast.ImportFrom, names: Sequence[ast.alias]) -> str:
    listed = [f"{one.name} as {one.asname}" if one.asname else one.name for one in names]
    if isinstance(statement, ast.Import):
        return f"import {', '.join(listed)}"
    line = f"from {statement.module} import {', '.join(listed)}"
    if len(line) <= WIDTH:
        return line
    return f"from {statement.module} import (\n" + "".join(f"    {name},\n" for name in listed) + ")"
