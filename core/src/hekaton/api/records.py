"""``hekaton.runs``: what runs left on disk, read without torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from hekaton.accounting import accounted, resumed_at
from hekaton.api.places import location
from hekaton.checkpoint.disk.folders import reason_of
from hekaton.checkpoint.runs.inspection import CONFIG, ListedStep, config_of_run, find_steps
from hekaton.contributions import OF_EVALUATION
from hekaton.errors import CheckpointError, HekatonError
from hekaton.identity.history import Change, history_in
from hekaton.json_lines import MAX_LINE, is_number, read_lines
from hekaton.jsonl import path_in
from hekaton.urls import is_url

log = logging.getLogger("hekaton")

T = TypeVar("T")


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
    :param restarts: the steps after which it was started again, or went back to.
    :param changes: what of the configuration, versions and source changed at resumes, and after which step.
    :param skipped: lines of ``metrics.jsonl`` that no run wrote.
    :param problems: what cannot be read in the folder, and is empty here, with the reasons.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    steps: list[SavedStep]
    restarts: list[int]
    changes: list[Change]
    skipped: int
    problems: list[str]


def runs(folder: str | PathLike[str]) -> list[PastRun]:
    """The runs in a folder: its own, and those in the folders inside it, by name.

    Nothing of them is changed, no tensor is read, and torch is not imported.

    A file that cannot be read is among the ``problems`` of its run, and a folder that cannot be is left out;
    both are logged as warnings.

    :raises CheckpointError: when the folder is not there, or cannot be read.
    """
    if is_url(place := location(folder)):
        raise CheckpointError(f"'{place}' is a URL", hint="runs are read from a folder of this machine")
    root = Path(place)
    if not root.is_dir():
        raise CheckpointError(f"there is no folder '{root}'")
    try:
        inside = sorted(root.iterdir())
    except OSError as error:
        raise CheckpointError(f"cannot read '{root}': {reason_of(error)}") from error
    found = []
    for one in (root, *inside):
        if _is_run(one):
            found.append(past_run(one, strict=False))
            for problem in found[-1].problems:
                log.warning("%s", problem)
    return found


def _is_run(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file() or path_in(folder).is_file()
    except OSError as error:
        log.warning("cannot read '%s': %s", folder, reason_of(error))
        return False


def past_run(folder: Path, *, strict: bool = True) -> PastRun:
    """What is in one folder, which may be nothing.

    :raises HekatonError: when a file in it cannot be read; where it is not ``strict``, none.
    """
    problems: list[str] = []

    def readable(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except HekatonError as error:
            if strict:
                raise
            problems.append(str(error))
            return None

    rows, skipped = readable(lambda: _rows(path_in(folder))) or ([], 0)
    config = readable(lambda: config_of_run(folder)) or {}
    saved = readable(lambda: steps_of_run(folder)) or []
    restarts = readable(lambda: resumed_at(accounted(folder))) or []
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
        restarts=restarts,
        changes=history_in(last.describe) if last is not None else [],
        skipped=skipped,
        problems=problems,
    )


def steps_of_run(folder: Path) -> list[ListedStep]:
    """The steps that a run saved; none where they cannot be reached.

    :raises CheckpointError: when another user's rights are needed.
    """
    try:
        return find_steps(str(folder))
    except (HekatonError, OSError) as error:
        if isinstance(error, HekatonError) and isinstance(error.__cause__, PermissionError):
            raise
        return []  # no steps, a name that no file system takes, a store that is not there


def _is_evaluation(row: dict[str, Any]) -> bool:
    return any(name.startswith(OF_EVALUATION) for name in row)


def _rows(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a file of metrics, and how many others there are; one that was cut off while it was
    written is none of these."""
    rows, skipped = [], 0
    try:
        for line, row in read_lines(file):
            if row is not None and is_number(row.get("step")):
                rows.append(row)
            elif line.endswith(b"\n") or len(line) == MAX_LINE:
                skipped += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error
    return rows, skipped
