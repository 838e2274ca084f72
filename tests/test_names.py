"""One name, one thing: no two modules define a class of the same name. Models know nothing of each other."""

from __future__ import annotations

import ast
from collections import defaultdict


def test_each_class_has_a_name_of_its_own(repository):
    defined = defaultdict(list)
    for pattern in ("core/src", "plugins/*/src"):
        for folder in repository.glob(pattern):
            for file in folder.rglob("*.py"):
                for node in ast.parse(file.read_text()).body:
                    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                        defined[node.name].append(str(file.relative_to(repository)))
    twice = {name: files for name, files in defined.items() if len(files) > 1}
    assert len(defined) > 100
    assert not twice
