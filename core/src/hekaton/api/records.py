"""``hekaton.runs``: what runs left on disk, read without torch."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from hekaton.api.places import location
from hekaton.checkpoint.disk.folders import read_file, reason_of
from hekaton.checkpoint.runs.inspection import DEFAULT_FOLDER, ListedStep, find_steps
from hekaton.contributions import OF_EVALUATION
from hekaton.errors import CheckpointError
from hekaton.identity.history import Change, history_in
from hekaton.json_lines import MAX_LINE, is_number, read_lines
from hekaton.jsonl import path_in
from hekaton.urls import is_url

CONFIG = "config.toml"
_MAX_CONFIG = 2**24


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """A checkpoint of a run.

    :param good: whether it is whole, and its loss and weights were finite.
    """

    number: int
    folder: str
    good: bool


@dataclass(frozen=True, kw_only=True)
class PastRun:
    """What a run left in its folder.

    :param config: the resolved configuration, as tables; empty where there is none.
    :param metrics: what the logger ``jsonl`` wrote for each report of training, oldest first: ``step``,
        ``time`` in seconds since the epoch, and the numbers; ``None`` for one that was not finite. A list of
        such rows is what ``pandas.DataFrame`` takes.
    :param validation: the same of each validation.
    :param evaluations: the same of each evaluation by tasks, ``evaluation/TASK/METRIC``.
    :param steps: its checkpoints, oldest first.
    :param changes: what of the configuration, versions and source changed at resumes, and after which step.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    steps: list[SavedStep]
    changes: list[Change]


def runs(folder: str | PathLike[str]) -> list[PastRun]:
    """The runs in a folder: its own, and those in the folders inside it, by name.

    Nothing of them is changed, no tensor is read, and torch is not imported.

    :raises CheckpointError: when the folder is not there, or a file in it cannot be read.
    """
    if is_url(place := location(folder)):
        raise CheckpointError(f"'{place}' is a URL", hint="runs are read from a folder of this machine")
    root = Path(place)
    if not root.is_dir():
        raise CheckpointError(f"there is no folder '{root}'")
    return [_read(one) for one in (root, *sorted(root.iterdir())) if _is_run(one)]


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or path_in(folder).is_file()


def _read(folder: Path) -> PastRun:
    config = _config(folder / CONFIG)
    rows = list(_rows(path_in(folder)))
    saved = _saved(folder, config)
    last = next((one.manifest for one in reversed(saved) if one.manifest is not None), None)
    return PastRun(
        folder=folder,
        config=config,
        metrics=[row for row in rows if "loss" in row],
        validation=[row for row in rows if "loss" not in row and not _is_evaluation(row)],
        evaluations=[row for row in rows if _is_evaluation(row)],
        steps=[
            SavedStep(number=one.number, folder=str(one.folder), good=one.status == "good")
            for one in saved
            if one.number is not None
        ],
        changes=history_in(last.describe) if last is not None else [],
    )


def _is_evaluation(row: dict[str, Any]) -> bool:
    return any(name.startswith(OF_EVALUATION) for name in row)


def _config(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_file(file, limit=_MAX_CONFIG).decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read '{file}': {error}") from error


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of metrics; one that was cut off while it was written is left out."""
    try:
        for number, (line, row) in enumerate(read_lines(file), 1):
            if row is not None and is_number(row.get("step")):
                yield row
            elif line.endswith(b"\n") or len(line) == MAX_LINE:
                raise CheckpointError(f"{file}, line {number}: an object with a step was expected")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error


def _saved(folder: Path, config: dict[str, Any]) -> list[ListedStep]:
    """The steps where the run's configuration has them."""
    section = config.get("checkpoint", {})
    name = section.get("folder", DEFAULT_FOLDER) if isinstance(section, dict) else DEFAULT_FOLDER
    if is_url(str(name)):
        return []
    place = folder / str(name)
    try:
        return find_steps(str(place)) if place.is_dir() else []
    except (CheckpointError, OSError):  # a folder without steps, or a name that no file system takes
        return []
