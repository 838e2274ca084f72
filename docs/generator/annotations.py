"""The classes and names of types that annotations mention: what a reader of a signature must look up."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from generator.source import get_tree


@dataclass(frozen=True)
class Alias:
    """A name of a type, with what it stands for."""

    name: str
    module: str
    value: str


def mentioned(module: str, class_name: str = "", members: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """Module and name of each of hekaton's classes and aliases in the public annotations of a module's
    functions, or of a class in it.

    :param members: of the class, those to look at; all where there are none.
    """
    for node in get_tree(module).body:
        if isinstance(node, ast.FunctionDef) and not class_name:
            yield from _resolved(module, _of_function(node))
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign):
                    yield from _resolved(module, [statement.annotation])
                if isinstance(statement, ast.FunctionDef) and (not members or statement.name in members):
                    yield from _resolved(module, _of_function(statement))


def get_alias(module: str, name: str) -> Alias | None:
    """An alias of a module; ``None`` for a class. :raises LookupError: when it has neither."""
    for node in get_tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return None
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            value = node.value
            text = value.value if isinstance(value, ast.Constant) else ast.unparse(value or node)
            return Alias(name, module, str(text).replace("npt.", "numpy.").replace("np.", "numpy."))
    raise LookupError(f"{module} has no class and no alias {name}")


def _of_function(node: ast.FunctionDef) -> list[ast.expr]:
    if node.name.startswith("_") and node.name != "__call__":
        return []
    arguments = [*node.args.args, *node.args.kwonlyargs]
    found = [*(argument.annotation for argument in arguments), node.returns]
    return [annotation for annotation in found if annotation is not None]


def _resolved(module: str, annotations: list[ast.expr]) -> Iterator[tuple[str, str]]:
    for annotation in annotations:
        for name in _names(annotation):
            place = _place(module, name)
            if place is not None:
                yield place


def _names(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        # A forward reference; a literal's value that reads like a name resolves to nothing.
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.isidentifier():
            yield inner.value


def _place(module: str, name: str) -> tuple[str, str] | None:
    """Where a name of a module is defined, ``None`` for what is not hekaton's."""
    tree = get_tree(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hekaton"):
            for imported in node.names:
                if (imported.asname or imported.name) == name:
                    return _place(str(node.module), imported.name)
    try:
        get_alias(module, name)
    except LookupError:
        return None
    return module, name
