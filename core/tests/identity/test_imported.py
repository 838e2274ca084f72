"""What plugins and user code import from anywhere is compared: two machines, of which one has another helper."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hekaton.identity import code, imported

NONE: Any = SimpleNamespace(infos=[], all=lambda kind: {})
"""No plugins."""
Files = dict[str, str]
Machine = Callable[[Files], dict[str, str]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Imports ``own`` on a machine with these files; says what of it is compared."""
    before = set(sys.modules)
    own = imported._own_modules
    monkeypatch.setattr(
        imported, "_own_modules", lambda: {n: one for n, one in own().items() if n not in before}
    )

    def forget() -> None:
        for name in set(sys.modules) - before:
            del sys.modules[name]
        code._header.cache_clear()
        imported._distribution_of.cache_clear()
        importlib.invalidate_caches()

    def values(files: Files) -> dict[str, str]:
        folder = tmp_path / f"machine{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        with zipfile.ZipFile(folder / "lib.zip", "w") as archive:
            archive.writestr("in_archive.py", files.get("in_archive", ""))
        with monkeypatch.context() as patched:
            for place in (".", "elsewhere", "site-packages", "lib.zip"):
                patched.syspath_prepend(str(folder / place))
            importlib.import_module("own")
            found = imported.imported(NONE)
        forget()
        return found

    yield values
    forget()


def differing(one: dict[str, str], other: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Where both have a say."""
    return {name: (one[name], other[name]) for name in one if name in other and one[name] != other[name]}


LAZILY = "def f():\n    import helper\n"
LONG = (
    f"A = {' + '.join('1' for _ in range(1200))}\nif A == 0:\n    pass\n"
    + "".join(f"elif A == {number}:\n    pass\n" for number in range(400))
    + "else:\n    def f():\n        import helper\n"
)
"""Deeper than Python's stack, though Python reads it."""
BY_NAME = "import importlib\nimportlib.import_module('helper')\n"


@pytest.mark.parametrize(
    ("own", "file", "named"),
    [
        ("import helper", "helper.py", "helper.py"),
        ("import helper", "elsewhere/helper.py", "helper.py"),
        (BY_NAME, "elsewhere/helper.py", "helper.py"),
        (LAZILY, "elsewhere/helper.py", "helper.py"),
        (
            LONG,
            "elsewhere/helper.py",
            "helper.py",
        ),
        (LAZILY, "elsewhere/helper/__init__.py", "helper/__init__.py"),
        ("import space.part", "elsewhere/space/part.py", "space/part.py"),
        ("import loose", "site-packages/loose.py", "loose.py"),
        ("import in_archive", "in_archive", "in_archive.py"),
    ],
)
def test_another_helper_is_named(
    machine: Machine, own: str, file: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A plugin in a namespace package, which has no folder that could be compared as a whole.
    monkeypatch.setattr(code, "packages", lambda plugins: {code.CORE, "space"})
    one, other, same = (machine({"own.py": own, file: f"A = {value}"}) for value in (1, 2, 1))
    assert differing(one, other).keys() == {f"source of {named}"}
    assert differing(one, same) == {}


def distribution(version: str, *, name: str = "of_others", module: str = "math_of_others") -> Files:
    info = f"site-packages/{name}-{version}.dist-info"
    return {
        "own.py": f"def f():\n    import {module}\nf()",
        f"site-packages/{module}/__init__.py": f"# {version}",
        f"{info}/METADATA": f"Name: {name}\nVersion: {version}\n\n",
        f"{info}/RECORD": f"{name}-{version}.dist-info/METADATA,,\n{module}/__init__.py,,\n",
    }


def test_a_library_that_nobody_requires_is_compared_by_its_version(machine: Machine) -> None:
    found = [machine(distribution(version)) for version in ("1.0", "2.0")]
    assert differing(*found) == {"version of math_of_others": ("of_others 1.0", "of_others 2.0")}
    assert not any("math_of_others" in name for name in found[0] if name.startswith("source"))
    sends_logs = machine(distribution("1.0", name="wandb", module="wandb"))
    assert "module wandb" not in sends_logs, "it computes nothing"


@pytest.mark.parametrize(
    "own",
    [
        "try:\n    import fast_one\nexcept ImportError:\n    fast_one = None\n",
        "def f():\n    import fast_one\n",
    ],
)
def test_a_helper_that_one_machine_cannot_import_is_named(machine: Machine, own: str) -> None:
    one, other = machine({"own.py": own, "fast_one.py": ""}), machine({"own.py": own})
    assert differing(one, other) == {"module fast_one": ("there", "not there")}


def test_a_library_that_only_one_machine_has_and_uses_is_not_compared(machine: Machine) -> None:
    one = machine(distribution("1.0"))
    other = machine({"own.py": distribution("1.0")["own.py"].removesuffix("f()")})
    assert differing(one, other).keys() == {"source of own.py"}


@pytest.mark.parametrize(
    "own",
    [
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fast_one\n",
        "import os\nif os.environ.get('NEVER_SET_BY_ANYBODY'):\n    import helper\n",
    ],
)
def test_what_a_machine_does_not_import_may_be_missing(machine: Machine, own: str) -> None:
    one = machine({"own.py": own, "fast_one.py": "", "helper.py": ""})
    assert differing(one, machine({"own.py": own, "helper.py": ""})) == {}
