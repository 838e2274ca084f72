"""One name, one thing: no two modules define a class of the same name. Models know nothing of each other."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path


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


def test_the_trainer_is_short(repository):
    assert len((repository / "core/src/hekaton/trainer.py").read_text().splitlines()) < 300


# Names and phrases of earlier versions, each in two parts so that this file has none of them.
REPLACED = [
    *(
        "passed ov" + "er",
        "goes on fr" + "om",
        "gone on wi" + "th",
        "is told ag" + "ain",
        "of another pro" + "gram",
    ),
    *(
        "seen from be" + "low",
        "imagine_and" + "_say",
        "in_v" + "ain",
        "Point" + "less",
        "what_cannot" + "_be",
    ),
    *("makes no good one", "let other runs " + "have"),
]


def test_replaced_names_and_phrases_are_gone(repository):
    folders = ["core", "plugins", "model_zoo", "docs", "tests", "benchmarks"]
    texts = {
        str(file.relative_to(repository)): file.read_text(encoding="utf-8")
        for folder in folders
        for file in (repository / folder).rglob("*")
        if file.suffix in (".py", ".md", ".toml", ".sh") and file != Path(__file__)
    }
    texts |= {file.name: file.read_text(encoding="utf-8") for file in repository.glob("*.md")}
    assert len(texts) > 500
    found = [f"{name}: {phrase}" for name, text in texts.items() for phrase in REPLACED if phrase in text]
    assert found == []
