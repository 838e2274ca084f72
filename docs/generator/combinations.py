"""The reference of what converters cannot be combined with, from the tables that a run is checked with."""

from __future__ import annotations

from collections.abc import Sequence

from generator.markdown import table
from hekaton.combinations import Combination
from hekaton_float8.combinations import TABLE as FLOAT8
from hekaton_mx.combinations import TABLE as MX

INTRODUCTION = """\
# Combinations of converters

`[model] converters` are run in the order given. A run with one of these combinations is refused, or given a
notice, before anything is built.
"""


def page() -> str:
    """The page as Markdown."""
    tables = {"quantize.linear.float8": FLOAT8, "quantize.linear.mx": MX}
    parts = [f"## {name}\n\n{_rows(entries)}" for name, entries in tables.items()]
    return "\n".join([INTRODUCTION, *parts])


def _rows(entries: Sequence[Combination]) -> str:
    header = ("combination", "the run is", "because", "instead")
    rows = [
        (entry.when, "refused" if entry.refused else "given a notice", entry.reason, entry.instead)
        for entry in entries
    ]
    return table(header, rows)
