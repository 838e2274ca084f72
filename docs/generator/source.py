"""Classes and functions as they stand in the source: read, not imported, so that types are as written."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from generator.markdown import Docstring, code, parse, table


@dataclass(frozen=True)
class Function:
    """A function or method: its signature on one or several lines, and its docstring."""

    name: str
    signature: str
    doc: Docstring


@dataclass(frozen=True)
class Field:
    """A class attribute with its type and, where it has one, default and docstring."""

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class Class:
    """What a reader needs to know of a class."""

    name: str
    module: str
    bases: tuple[str, ...]
    doc: Docstring
    fields: tuple[Field, ...]
    methods: tuple[Function, ...]
    by_keyword: bool = False


def functions(module: str) -> list[Function]:
    """The public functions of a module, in order."""
    return [_function(node) for node in get_tree(module).body if isinstance(node, ast.FunctionDef)]


def get_class(module: str, name: str) -> Class:
    """A class of a module. :raises LookupError: when the module has none of that name."""
    for node in get_tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _class(node, module)
    raise LookupError(f"{module} has no class {name}")


def get_function(module: str, name: str) -> Function:
    """A function of a module. :raises LookupError: when the module has none of that name."""
    for node in get_tree(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _function(node)
    raise LookupError(f"{module} has no function {name}")


def references(module: str, name: str = "") -> list[str]:
    """Full names of hekaton's classes that the docstrings of a module, or of one class in it, refer to."""
    nodes = [node for node in ast.walk(get_tree(module)) if not name or getattr(node, "name", "") == name]
    text = "\n".join(
        ast.get_docstring(node) or ""
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    return re.findall(r":class:`(hekaton\.[a-z_.]+\.[A-Z]\w*)`", text)


def describe(described: Class) -> str:
    """A class as Markdown, below a heading of the caller's: text, fields, methods."""
    parts = [described.doc.text]
    if described.by_keyword:
        parts.append("Made with keyword arguments alone.")
    meanings = described.doc.params | {field.name: field.doc for field in described.fields if field.doc}
    if described.fields:
        rows = [
            [code(field.name), code(field.type), code(field.default), meanings.get(field.name, "")]
            for field in described.fields
        ]
        # Columns that nothing stands in are left out.
        used = [number for number in range(4) if any(row[number] for row in rows)]
        head = ["field", "type", "default", "meaning"]
        parts.append(
            table([head[number] for number in used], [[row[number] for number in used] for row in rows])
        )
    for method in described.methods:
        parts.append(f"```python\n{method.signature}\n```")
        parts += filter(None, [method.doc.text, details(method.doc)])
    return "\n\n".join(filter(None, parts))


def details(doc: Docstring) -> str:
    """Parameters, what is returned, what is raised: a list."""
    lines = [f"- `{name}`: {text}" for name, text in doc.params.items()]
    lines += [f"- **{kind}** {text}" for kind, text in doc.others]
    return "\n".join(lines)


def definitions(text: str) -> Iterator[tuple[str, int, int]]:
    """Each statement of a module: the name of what it defines, once, or nothing; its first line, and the line
    after it. Comments and decorators before it are part of it."""
    begin = 1
    known = {""}
    for node in ast.parse(text).body:
        end = (node.end_lineno or node.lineno) + 1
        targets = node.targets[:1] if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        name = getattr(node, "name", "") or getattr(targets[0], "id", "")
        yield "" if name in known else name, begin, end
        known.add(name)
        begin = end


@cache
def get_tree(module: str) -> ast.Module:
    """The source of a module, parsed."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _class(node: ast.ClassDef, module: str) -> Class:
    fields = []
    methods = []
    for statement, follower in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            fields.append(
                Field(
                    name=statement.target.id,
                    type=_words(statement.annotation),
                    default=_default(statement.value),
                    doc=_attribute_doc(follower),
                )
            )
        if isinstance(statement, ast.FunctionDef) and (
            not statement.name.startswith("_") or _is_told(statement, node)
        ):
            methods.append(_function(statement))
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            fields += _attributes(statement)
    return Class(
        name=node.name,
        module=module,
        bases=tuple(ast.unparse(base) for base in node.bases),
        doc=parse(ast.get_docstring(node)),
        fields=tuple(fields),
        methods=tuple(methods),
        by_keyword=any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list),
    )


def _is_told(method: ast.FunctionDef, owner: ast.ClassDef) -> bool:
    """Whether a special method belongs to the interface; one without a text only implements a protocol's."""
    is_protocol = any(ast.unparse(base) == "Protocol" for base in owner.bases)
    return method.name in ("__call__", "__len__") and (is_protocol or bool(ast.get_docstring(method)))


def _attributes(init: ast.FunctionDef) -> list[Field]:
    """The public attributes that an ``__init__`` sets, those with a docstring."""
    found = []
    for statement, follower in pairwise(init.body):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        kind = ""
        if isinstance(statement, ast.AnnAssign):
            target, kind = statement.target, _words(statement.annotation)
        doc = _attribute_doc(follower)
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_") and doc:
            found.append(Field(name=target.attr, type=kind, default="", doc=doc))
    return found


def _function(node: ast.FunctionDef) -> Function:
    returns = f" -> {_words(node.returns)}" if node.returns is not None else ""
    arguments = _words(node.args)
    above = "".join(f"@{ast.unparse(decorator)}\n" for decorator in node.decorator_list)
    if above == "@hookspec\n":
        above = ""
    signature = f"def {node.name}({arguments}){returns}"
    if len(signature) > 100:
        broken = ",\n    ".join(_split_arguments(node.args))
        signature = f"def {node.name}(\n    {broken},\n){returns}"
    return Function(node.name, above + signature, parse(ast.get_docstring(node)))


def _split_arguments(arguments: ast.arguments) -> list[str]:
    assert not arguments.posonlyargs
    pieces = [_argument(argument) for argument in arguments.args]
    for number, default in enumerate(reversed(arguments.defaults), start=1):
        pieces[-number] += f" = {ast.unparse(default)}"
    if arguments.kwonlyargs:
        pieces.append("*")
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        pieces.append(_argument(argument) + (f" = {ast.unparse(value)}" if value is not None else ""))
    return pieces


def _argument(argument: ast.arg) -> str:
    kind = f": {_words(argument.annotation)}" if argument.annotation is not None else ""
    return f"{argument.arg}{kind}"


def _words(node: ast.AST) -> str:
    """Source of a type or of arguments, forward references without their quotes."""
    if isinstance(node, ast.arguments):
        return ", ".join(_split_arguments(node))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return ast.unparse(node)


def _default(value: ast.expr | None) -> str:
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        words = {word.arg: ast.unparse(word.value) for word in value.keywords}
        if "default_factory" in words:
            made = words["default_factory"]
            return made.removeprefix("lambda: ").strip("_") if made.startswith("lambda: ") else f"{made}()"
        return words.get("default", "").replace("'", '"')
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return json.dumps(value.value)
    return ast.unparse(value) if value is not None else ""


def _attribute_doc(follower: ast.stmt | None) -> str:
    if isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant):
        return parse(str(follower.value.value)).text
    return ""
