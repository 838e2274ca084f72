"""The notebook of the documentation runs, and its picture is on the first pages."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from hekaton.testing import run_processes

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.py"


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path):
    pytest.importorskip("matplotlib")
    run_processes(__file__, "cells", processes=1, cwd=tmp_path, timeout=110)
    page = (tmp_path / "page.md").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 3
    assert "run in first, step 60, loss " in page
    rates = re.findall(r"^(first|second) (\S+) (\S+)$", page, re.M)
    assert [(folder, rate) for folder, rate, _ in rates] == [("first", "0.003"), ("second", "0.0003")]
    assert float(rates[0][2]) < float(rates[1][2])


def cells() -> None:
    spec = importlib.util.spec_from_file_location("notebook", NOTEBOOK)
    assert spec is not None
    assert spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    sys.modules["notebook"] = notebook  # where its dataclasses look for their module
    spec.loader.exec_module(notebook)
    text = (NOTEBOOK.parent / notebook.PAGE).read_text(encoding="utf-8")
    import warnings

    warnings.simplefilter("ignore")  # matplotlib's own, while it looks for fonts
    Path("page.md").write_text(notebook.with_results(text, notebook.run(text, ".")))


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_picture_is_on_the_first_pages(page):
    (named,) = re.findall(r"!\[[^\]]+\]\(([^)]*loss-curve\.svg)\)", (ROOT / page).read_text(encoding="utf-8"))
    picture = ((ROOT / page).parent / named).read_text(encoding="utf-8")
    assert "<svg" in picture
