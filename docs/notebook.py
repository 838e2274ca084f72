"""Run the cells of the notebook page, when the documentation is built and by the tests.

    python docs/notebook.py    writes docs/loss-curve.svg, the picture of the first page and the README

As a hook of mkdocs it puts behind each cell what that printed and plotted.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = "how-to/notebook.md"
AS_IT_IS = "HEKATON_DOCS_CELLS_AS_THEY_ARE"
"""Set in the environment: build the documentation without running the cells."""
PICTURE = DOCS / "loss-curve.svg"
CELL = re.compile(r"^```python\n(.*?)^```\n", re.M | re.S)


@dataclass(frozen=True)
class Ran:
    """A cell that was run.

    :param figures: what it plotted, as SVG.
    """

    printed: str
    figures: list[str]


def run(text: str, folder: str | Path) -> list[Ran]:
    """Run the cells of a page, one after the other, in ``folder``."""
    import matplotlib

    matplotlib.use("svg")
    names: dict[str, Any] = {"__name__": "__main__"}
    ran = []
    with contextlib.chdir(folder):
        for number, cell in enumerate(CELL.findall(text), 1):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
                exec(compile(ast.parse(cell), f"cell {number}", "exec"), names)
            ran.append(Ran(printed.getvalue(), list(_figures())))
    return ran


def _figures() -> Iterator[str]:
    if "matplotlib.pyplot" not in sys.modules:
        return
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "hekaton"}):
        for number in plt.get_fignums():
            drawn = io.StringIO()
            plt.figure(number).savefig(drawn, format="svg", bbox_inches="tight", metadata={"Date": None})
            yield drawn.getvalue()
    plt.close("all")


def with_results(text: str, ran: list[Ran]) -> str:
    """The page with what each cell gave behind it."""
    results = iter(ran)

    def shown(cell: re.Match[str]) -> str:
        one = next(results)
        parts = [cell.group(0)]
        if one.printed:
            parts.append(f"```text\n{one.printed.rstrip()}\n```\n")
        for figure in one.figures:
            data = base64.b64encode(figure.encode()).decode()
            parts.append(f'<img alt="a plot" src="data:image/svg+xml;base64,{data}">\n')
        return "\n".join(parts)

    return CELL.sub(shown, text)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if page.file.src_uri != PAGE or os.environ.get(AS_IT_IS):
        return markdown
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        return with_results(markdown, run(markdown, folder))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ran = run((DOCS / PAGE).read_text(encoding="utf-8"), folder)
    first = next(figure for one in ran for figure in one.figures)
    PICTURE.write_text(first, encoding="utf-8")
    print("".join(one.printed for one in ran), end="")


if __name__ == "__main__":
    main()
