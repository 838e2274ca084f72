"""The tutorial: its code is what ``hekaton new`` writes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hekaton.scaffold import chosen, distribution_files

DOCS = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r'^(```\w+ title="([^"]+)"\n)(.*?)^(```)$', re.M | re.S)


def page() -> str:
    """The page as it is, with the files of the command in its first block."""
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    files = distribution_files(chosen(command(text)))

    def fresh(block: re.Match[str]) -> str:
        return block[1] + files.get(block[2], block[3]) + block[4]

    return _BLOCK.sub(fresh, text)


def command(text: str) -> list[str]:
    """The kinds and names that the page asks for."""
    (line,) = [block[3] for block in _BLOCK.finditer(text) if block[2] == "begin"]
    words = shlex.split(line.removeprefix("$ hekaton new "))
    return words[: words.index("--into")]
