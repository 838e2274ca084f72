"""Which distributions and files are the code of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hekaton.identity import code

REQUIRED = {
    "hekaton": ("torch", "numpy>=1.26", 'products>=0.18; extra == "fast"', 'unused; extra == "fast"',
                'fsspec; extra == "more"'),
    "torch": ('nvidia-cudnn-cu13==9; platform_system != "nowhere"', "triton==3", "networkx"),
}  # fmt: skip
NONE: Any = SimpleNamespace(infos=[])
"""No plugins."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(code, "_header", lambda name: ("1.0", REQUIRED.get(name, ())))
    code._required.cache_clear()
    yield
    code._required.cache_clear()


def test_the_libraries_that_torch_computes_with_are_compared(installed: None) -> None:
    assert code.versions(NONE).keys() == {
        "Python",
        "hekaton",
        "torch",
        "numpy",
        "nvidia-cudnn-cu13",
        "triton",
    }


def test_an_extra_is_compared_where_it_is_imported(installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("products", "fsspec"):
        monkeypatch.setitem(sys.modules, name, sys)
    assert code.imported_versions(NONE) == {"products": "1.0"}, "fsspec computes nothing"


def test_tables_of_a_package_are_its_source_and_what_was_compiled_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_with_table"
    (package / "tables").mkdir(parents=True)
    for name in ("__init__.py", "tables/of_rates.csv", "kernels.cu", "kernels.so", ".hidden"):
        (package / name).write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [name for name, _ in code._files_of("package_with_table")] == [
        "package_with_table/__init__.py", "package_with_table/kernels.cu",
        "package_with_table/tables/of_rates.csv",
    ]  # fmt: skip
