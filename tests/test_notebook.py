"""The notebook of the documentation runs, and its picture is on the first pages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.py"


def cells() -> None:
    spec = importlib.util.spec_from_file_location("notebook", NOTEBOOK)
    assert spec is not None
    assert spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
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
