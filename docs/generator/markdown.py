"""Docstrings, with the few Sphinx marks that the code uses, as Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_FIELD = re.compile(r":(param|returns|raises)\s*([\w., ]*):\s*")
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|data|exc):`~?([^`]+)`")
_LITERAL = re.compile(r"``([^`]+)``")


@dataclass(frozen=True)
class Docstring:
    """A docstring taken apart.

    :param text: what comes before and after the fields, as Markdown.
    :param params: name -> description.
    :param others: (``Returns`` or ``Raises``, description), in the order written.
    """

    text: str
    params: dict[str, str]
    others: tuple[tuple[str, str], ...]


def parse(docstring: str | None) -> Docstring:
    """Take a docstring apart; a field's description goes on in the indented lines below it."""
    text: list[str] = []
    params: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    # `:param x: a tensor; :returns: another` is written on one line where it is short.
    lines = re.sub(r"; (?=:(?:param|returns|raises)\b)", "\n", inspect.cleandoc(docstring or "")).splitlines()
    while lines:
        line = lines.pop(0)
        match = _FIELD.match(line)
        if match is None:
            text.append(line)
            continue
        words = [line[match.end() :]]
        while lines and lines[0].startswith(" "):
            words.append(lines.pop(0).strip())
        description = inline(" ".join(words))
        kind, name = match.groups()
        if kind == "param":
            params[name.strip()] = description
        else:
            others.append((kind.capitalize(), f"`{name}`: {description}" if name else description))
    return Docstring(blocks("\n".join(text)), params, tuple(others))


def inline(text: str) -> str:
    """Roles and literals as code."""
    return _LITERAL.sub(r"`\1`", _ROLE.sub(r"`\1`", text))


def link(text: str, places: Mapping[str, str]) -> str:
    """Make links of the names in code that have a place.

    :param places: full name -> address, ``{"hekaton.spec.TrainSpec": "#trainspec"}``.
    """
    for name, place in places.items():
        text = text.replace(f"`{name}`", f"[`{name.rpartition('.')[2]}`]({place})")
    return text


def blocks(text: str) -> str:
    """Paragraphs filled to one line each, literal blocks (``::``) fenced."""
    done: list[str] = []
    literal = False
    for block in re.split(r"\n\s*\n", text.strip()):
        if literal and block.startswith("    "):
            lines = "\n".join(line[4:] for line in block.splitlines())
            if done[-1].endswith("\n```"):
                apart = "\n\n\n" if lines.startswith(("@", "def ", "class ")) else "\n\n"
                done[-1] = done[-1].removesuffix("\n```") + f"{apart}{lines}\n```"
            else:
                done.append(f"```python\n{lines}\n```")
            continue
        literal = block.endswith("::")
        done.append(inline(" ".join(block.removesuffix(":").split()) if literal else " ".join(block.split())))
    return "\n\n".join(filter(None, done))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; pipes and line breaks inside cells are escaped."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n\n", "<br>").replace("\n", " ")


def code(text: object) -> str:
    """Inline code."""
    return f"`{text}`" if text != "" else ""
