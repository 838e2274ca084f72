"""What the signatures of contributions do not say, from ``contract_facts.toml`` beside this module."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the signatures of a kind do not say; the file describes each."""

    when: str
    layouts: str
    state: str
    builds: tuple[str, ...] = ()
    template: str


def _read(text: str) -> dict[str, Facts]:
    return {
        kind: Facts(
            **{
                key: " ".join(value.split()) if isinstance(value, str) else tuple(value)
                for key, value in facts.items()
            }
        )
        for kind, facts in tomllib.loads(text).items()
    }


FACTS = _read(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
"""Name of the record -> its facts."""
