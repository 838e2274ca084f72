"""Every private name of torch in the source is listed with its reason, and this torch has it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

from hekaton.torch_private import PRIVATE_NAMES

RELEASE = Version(torch.__version__)


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


class Uses(ast.NodeVisitor):
    """The private names that a module uses, and those that it defines.

    :ivar used: from ``torch`` on where that is to be seen, and the bare attribute of other objects.
    """

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.defined: set[str] = set()
        self._imported: dict[str, str] = {"torch": "torch"}

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            if name.asname:
                self._imported[name.asname] = name.name
            if name.name.startswith("torch"):
                self._use(name.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for name in node.names:
            full = f"{node.module}.{name.name}"
            self._imported[name.asname or name.name] = full
            if full.startswith("torch."):
                self._use(full, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.defined.add(node.name)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.defined.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and isinstance(node.ctx, ast.Store):
            self.defined.add(node.attr)
        first, *rest = self._chain(node)
        full = ".".join([self._imported.get(first, first), *rest])
        self._use(full if full.startswith("torch.") else node.attr, node)
        if not full.startswith("torch."):
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Names of operators."""
        if isinstance(node.value, str) and re.fullmatch(
            r"(aten|profiler|_c10d_functional)\.\w+\.\w+", node.value
        ):
            self._use(f"torch.ops.{node.value}", node)

    def visit_Call(self, node: ast.Call) -> None:
        """``getattr(thing, "_name")`` and its like."""
        if len(node.args) > 1 and isinstance(node.func, ast.Name) and "attr" in node.func.id:
            name = node.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                self._use(name.value, node)
        self.generic_visit(node)

    def _chain(self, node: ast.expr) -> list[str]:
        if isinstance(node, ast.Attribute):
            return [*self._chain(node.value), node.attr]
        return [node.id] if isinstance(node, ast.Name) else [""]

    def _use(self, name: str, node: ast.AST) -> None:
        if is_private(name):
            self.used.setdefault(name, node.lineno)  # type: ignore[attr-defined]


def uses(repository: Path) -> Iterator[tuple[str, str]]:
    """Each private name of torch in the source of the distributions, and where it is used."""
    modules = {}
    for pattern in ("core/src", "plugins/*/src", "model_zoo/*/src"):
        for folder in repository.glob(pattern):
            for file in folder.rglob("*.py"):
                visitor = Uses()
                visitor.visit(ast.parse(file.read_text()))
                modules[file.relative_to(repository)] = visitor
    # of os, sys, fsspec and lm_eval
    others = {"_exit", "_current_frames", "_getframe", "_strip_protocol", "_import_func_in_yml"}
    ours = others.union(*(module.defined for module in modules.values()))
    ours -= {private.name.rpartition(".")[2] for private in PRIVATE_NAMES}
    for file, module in modules.items():
        for name, line in module.used.items():
            if name.startswith("torch.") or name not in ours:
                yield name, f"{file}:{line}"


def found(name: str) -> bool:
    """Whether this torch has a name: a module, an attribute, or what objects of a class are given."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(thing, part):
                return inspect.isclass(thing) and any(
                    f"self.{part}" in inspect.getsource(base) for base in thing.__mro__[:-1]
                )
            thing = getattr(thing, part)
        return True
    return False


def _is_within(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def test_each_use_is_listed_and_each_listed_name_is_used(repository):
    listed = [private.name for private in PRIVATE_NAMES]
    found_in = dict(uses(repository))
    unlisted = {
        name: place
        for name, place in found_in.items()
        if not any(f".{one}".endswith(f".{name}") or _is_within(one, name) for one in listed)
    }
    assert not unlisted, "add them to hekaton.torch_private, with the reason"
    unused = [
        one
        for one in listed
        if one.rpartition(".")[2] not in found_in and not any(_is_within(one, name) for name in found_in)
    ]
    assert not unused, "take them off the list"


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_this_torch_has_the_name(private):
    if Version(private.seen[0]) > RELEASE:
        pytest.skip(f"came with torch {private.seen[0]}")
    assert found(private.name), f"torch {torch.__version__} has no {private.name}: {private.reason}"
