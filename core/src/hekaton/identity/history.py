"""What changed of a run at its resumes: kept in every manifest and beside the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hekaton.identity.values import shown


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that is not what it was.

    :param step: the last step with ``was``; steps after it have ``now``.
    :param was: the value as JSON has it, ``None`` where it was not set.
    """

    step: int
    field: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field}: {shown(self.was)} until step {self.step}, {shown(self.now)} from then on"


def history_in(describe: Mapping[str, Any]) -> list[Change]:
    """The changes that a manifest tells of, oldest first."""
    kept = describe.get("history")
    return [
        Change(step=one["step"], field=one["field"], was=one.get("was"), now=one.get("now"))
        for one in (kept if isinstance(kept, list) else ())
        if isinstance(one, Mapping) and isinstance(one.get("step"), int) and isinstance(one.get("field"), str)
    ]


def history_to_json(history: Sequence[Change]) -> list[dict[str, Any]]:
    return [asdict(one) for one in history]
