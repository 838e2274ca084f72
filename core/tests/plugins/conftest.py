"""Distributions made of two files each, found by importlib.metadata as pip's would be."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., None]

HEADER = "from hekaton.contributions import *\nfrom hekaton.contributions import hookimpl\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder at the end of ``sys.path``; modules imported from it are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.delenv("HEKATON_DISABLE", raising=False)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder.parent) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """``install(distribution, code, entry=...)`` puts a plugin distribution into ``site``."""

    def install(
        distribution: str, code: str, *, module: str = "", entry: str = "", version: str = "1.2"
    ) -> None:
        module = module or distribution.replace("-", "_")
        (site / f"{module}.py").write_text(HEADER + textwrap.dedent(code))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[hekaton]\n{entry or module} = {module}\n")

    return install
