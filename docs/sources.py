"""Pages for the source files that the documentation links to, made when it is built.

As a hook of mkdocs: a link to a Python file of the repository (``../../core/src/hekaton/optim.py#adamw``) is
right where the page is read in the repository; on the site it leads to a page of the file, at the definition.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from generator.source import definitions
from mkdocs.structure.files import File, Files, InclusionLevel

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[\w/.-]+)\.py(?=[)#])")


def page(path: str, text: str) -> str:
    """A source file as Markdown: a heading before each of its definitions.

    :param path: of the file, below the folder of the repository.
    """
    parts: list[tuple[str, int, int]] = []
    for name, begin, end in definitions(text):
        if not name and parts and not parts[-1][0]:  # imports and the like stay together
            parts[-1] = ("", parts[-1][1], end)
        else:
            parts.append((name, begin, end))
    lines = text.splitlines()
    written = ["---\nsearch:\n  exclude: true\n---", f"# {posixpath.basename(path)}", f"`{path}`"]
    for name, begin, end in parts:
        if name:
            written.append(f"## {name} {{#{name}}}")
        code = "\n".join(lines[begin - 1 : end - 1]).strip("\n")
        written.append(f"````python\n{code}\n````")
    return "\n\n".join(written) + "\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Called by mkdocs: add the pages that are linked to."""
    docs = Path(config.docs_dir)
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            path = _path(file.src_uri, link)
            source = docs / path
            if source.is_file() and files.get_file_from_path(_uri(path)) is None:
                text = page(path.removeprefix("../"), source.read_text(encoding="utf-8"))
                files.append(
                    File.generated(config, _uri(path), content=text, inclusion=InclusionLevel.NOT_IN_NAV)
                )
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Called by mkdocs for each page: lead its links there. Of one to a file that is missing mkdocs warns."""

    def led(link: re.Match[str]) -> str:
        uri = _uri(_path(page.file.src_uri, link[1]))
        if files.get_file_from_path(uri) is None:
            return link[0]
        return os.path.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    # The dot and what follows it are replaced too, since the page of a file is called .md.
    return re.sub(LINK, led, markdown)


def _path(page: str, link: str) -> str:
    """Of the source file that a page links to, relative to the documentation's folder."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), f"{link}.py"))


def _uri(path: str) -> str:
    return f"source/{path.removeprefix('../').removesuffix('.py')}.md"
