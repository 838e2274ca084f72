"""What loggers keep beside a run: which run of an experiment tracker it is, and how far it got."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hekaton.checkpoint.disk.folders import read_file, write_whole

_MAX_BYTES = 2**24


@dataclass(frozen=True)
class ExternalRun:
    """A run of a tracker.

    :param id: what the tracker calls it.
    :param step: the last step that was logged to it.
    :param group: the group that it is in, where the tracker has groups.
    """

    id: str
    step: int
    group: str = ""

    def write(self, path: Path) -> None:
        """Keep it for a resume."""
        write_whole(path, json.dumps(asdict(self)).encode())


def read_external_run(path: Path) -> ExternalRun | None:
    """What a run that was here before kept; ``None`` where there is none, or the file is damaged."""
    try:
        content = json.loads(read_file(path, limit=_MAX_BYTES))
        return ExternalRun(id=str(content["id"]), step=int(content["step"]), group=str(content["group"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def configuration_beside(folder: Path) -> dict[str, Any]:
    """The resolved configuration that a run wrote to its folder; empty where it wrote none."""
    try:
        return tomllib.loads(read_file(folder / "config.toml", limit=_MAX_BYTES).decode())
    except FileNotFoundError:
        return {}
