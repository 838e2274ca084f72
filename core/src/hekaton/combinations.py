"""Tables of what a converter cannot be combined with: an entry is a rule, and a line of the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What does not work together.

    :param when: it, in words.
    :param applies: whether a run has it.
    :param reason: why it does not work, or has no effect.
    :param instead: the nearest choice that works.
    :param fields: the configuration fields that it is about.
    :param refused: whether such a run is refused; it is given a notice otherwise.
    """

    when: str
    applies: Callable[[Run], bool]
    reason: str
    instead: str
    fields: Sequence[str]
    refused: bool = True


def check_combinations(table: Sequence[Combination], run: Run) -> Iterator[HekatonError | str]:
    """The violations and notices of a run."""
    for entry in table:
        if not entry.applies(run):
            continue
        if entry.refused:
            yield run.violation(f"{entry.when}: {entry.reason}", *entry.fields, hint=entry.instead)
        else:
            yield f"{entry.when}: {entry.reason}; {entry.instead}"
