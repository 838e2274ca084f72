"""The table of what converters cannot be combined with: an entry is a rule, and a line of the docs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hekaton.errors import HekatonError
    from hekaton.rules import Run

CONVERTERS = "model.converters"


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What does not work together.

    :param converter: whose combination it is; runs without it are not looked at.
    :param when: it, in words.
    :param applies: whether a run has it.
    :param capability: it is about GPUs of a lower capability alone.
    :param reason: why it does not work, or has no effect.
    :param instead: the nearest choice that works.
    :param fields: the configuration fields that it is about.
    :param refused: whether such a run is refused; it is given a notice otherwise.
    """

    converter: str
    when: str
    applies: Callable[[Run], bool]
    capability: tuple[int, int] | None = None
    reason: str
    instead: str
    fields: Sequence[str]
    refused: bool = True

    def concerns(self, run: Run) -> bool:
        """Whether it is about a run, on whatever GPU that may be."""
        return self.converter in run.config.model.converters and self.applies(run)


def check_combinations(table: Sequence[Combination], run: Run) -> Iterator[HekatonError | str]:
    """The violations and notices of a run."""
    for entry in table:
        if not entry.concerns(run):
            continue
        if entry.capability is not None and not _is_below(run, entry.capability):
            continue
        if entry.refused:
            yield run.violation(f"{entry.when}: {entry.reason}", *entry.fields, hint=entry.instead)
        else:
            yield f"{entry.when}: {entry.reason}; {entry.instead}"


def comes_before(run: Run, first: str, second: str) -> bool:
    """Whether a run has both converters, ``first`` before ``second``."""
    names = run.config.model.converters
    return first in names and second in names and names.index(first) < names.index(second)


def wrong_order(converter: str, *, first: str, reason: str, note: str = "") -> Combination:
    """The entry of a converter that does not work after the converter ``first``.

    :param note: what follows the order that works.
    """
    return Combination(
        converter=converter,
        when=f"{first} before {converter}",
        applies=lambda run: comes_before(run, first, converter),
        reason=reason,
        instead=f'write converters = ["{converter}", "{first}"]{note}',
        fields=(CONVERTERS,),
    )


def compiles_model(run: Run) -> bool:
    """Whether a run compiles its blocks."""
    return run.config.compile.enable and "model" in run.config.compile.components


def _is_below(run: Run, needed: tuple[int, int]) -> bool:
    if run.device_type != "cuda" or not run.here:
        return False
    import torch

    return torch.cuda.is_available() and torch.cuda.get_device_capability() < needed
