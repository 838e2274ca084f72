"""The reference of ``import hekaton``: what ``dir`` lists, from the docstrings."""

from __future__ import annotations

import ast

import hekaton
from generator import source

INTRODUCTION = """\
# Python

What `import hekaton` offers, and `dir(hekaton)` lists; [From Python](../how-to/python.md) shows it at work.
What is not here is private. All of it is typed, and torch is imported when the first of it is used.
"""


def page() -> str:
    """The Markdown of the page: functions, then classes."""
    parts = [INTRODUCTION.strip()]
    names = {name: module for name, module in hekaton._MODULES.items() if name != "HekatonError"}
    for name, module in sorted(names.items()):
        if name.islower():
            function = source.get_function(module, name)
            text = function.doc.text.partition("\n\n>>>")[0]
            parts += [f"## hekaton.{name}", f"```python\n{_signature(module, name)}\n```", text]
            parts.append(source.details(function.doc))
    for name, module in sorted(names.items()):
        if not name.islower():
            parts += [f"## hekaton.{name}", source.describe(source.get_class(module, name))]
    parts.append(
        "## hekaton.HekatonError\n\nWhat users can cure: raised with the text that the command line prints."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _signature(module: str, name: str) -> str:
    """With the arguments that a function takes in any number, which hooks have not."""
    node = next(one for one in source.get_tree(module).body if getattr(one, "name", "") == name)
    assert isinstance(node, ast.FunctionDef)
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    return f"def {name}({ast.unparse(node.args)}){returns}"
