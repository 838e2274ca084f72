"""What differs between two runs: the first logged step, the first saved one and its tensors, and the values
that may explain it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.api.records import past_run, steps_of_run
from hekaton.checkpoint.disk.manifest import NotWhole
from hekaton.checkpoint.runs.inspection import ListedStep
from hekaton.errors import CheckpointError, ConfigError
from hekaton.identity.values import config_values
from hekaton.json_lines import is_number
from hekaton.metrics import is_measured

if TYPE_CHECKING:
    import torch

    from hekaton.checkpoint.disk.stored import StoredTensors


@dataclass(frozen=True)
class RunFiles:
    """What two runs are compared by.

    :param logged: step -> metric -> value, ``None`` where it was not finite; empty without ``metrics.jsonl``.
    :param saved: step -> the whole step of that number.
    :param values: of its configuration, and of what else its newest step says that it is, by dotted name.
    :param skipped: lines of ``metrics.jsonl`` that are none of a run's.
    """

    logged: Mapping[int, Mapping[str, float | None]]
    saved: Mapping[int, ListedStep]
    values: Mapping[str, Any]
    skipped: int = 0


def run_files(folder: Path) -> RunFiles:
    """Read a run folder; none of its files can run code.

    :raises HekatonError: when it is no folder of a run, or a file in it cannot be read.
    """
    run = past_run(folder)
    saved = {step.number: step for step in steps_of_run(folder) if step.number is not None and not step.wrong}
    logged = _logged([*run.metrics, *run.validation, *run.evaluations])
    values = _values(saved) if saved else config_values(run.config)
    if not saved and not logged and not values:
        raise ConfigError(
            f"'{folder}' is no folder of a run", hint="give job.dump_folder, with config.toml or steps in it"
        )
    return RunFiles(logged, saved, values, run.skipped)


def first_logged(one: RunFiles, other: RunFiles) -> tuple[int, dict[str, tuple[Any, Any]]] | None:
    """The first step that both logged with other values, and these by the metric's name. What is measured of
    the machine (rates, seconds, memory) is not compared; ``None`` when nothing differs."""
    for step in sorted(one.logged.keys() & other.logged.keys()):
        mine, theirs = one.logged[step], other.logged[step]
        both = [name for name in mine if name in theirs and not is_measured(name)]
        found = {name: (mine[name], theirs[name]) for name in both if mine[name] != theirs[name]}
        if found:
            return step, found
    return None


@dataclass(frozen=True)
class DifferingTensor:
    """A tensor that two steps have with other bits.

    :param values: how many of its ``size`` values differ.
    :param largest: difference of two values, ``nan`` where one is no number; ``None`` for tensors of other
        shapes or types, whose values are not compared.
    """

    name: str
    values: int
    size: int
    largest: float | None


def first_saved(one: RunFiles, other: RunFiles) -> tuple[int, list[DifferingTensor], list[str]] | None:
    """The first step that both saved with other tensors: those that both have, and names that one has alone.

    :raises CheckpointError: when a step cannot be read.
    """
    for number in sorted(one.saved.keys() & other.saved.keys()):
        mine, theirs = one.saved[number], other.saved[number]
        assert mine.manifest is not None
        assert theirs.manifest is not None
        if mine.manifest.files == theirs.manifest.files:
            continue  # the same files with the same checksums
        try:
            differing, alone = _differing(mine, theirs)
        except NotWhole as reason:
            raise CheckpointError(f"cannot compare step-{number}: {reason}") from reason
        if differing or alone:
            return number, differing, alone
    return None


def differing_values(one: RunFiles, other: RunFiles) -> dict[str, tuple[Any, Any]]:
    """Values of the configuration, the model, data, versions and code that differ, by dotted name."""
    names = dict.fromkeys([*one.values, *other.values])
    pairs = {name: (one.values.get(name), other.values.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _logged(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float | None]]:
    found: dict[int, dict[str, float | None]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if value is None or is_number(value)}
        del numbers["step"]
        numbers.pop("time", None)
        found.setdefault(int(row["step"]), {}).update(numbers)
    return found


def _values(saved: Mapping[int, ListedStep]) -> dict[str, Any]:
    newest = saved[max(saved)]
    tables = {name: newest.described(name) for name in ("config", "identity", "layout")}
    config, identity, layout = (one if isinstance(one, Mapping) else {} for one in tables.values())
    degrees = {f"degree of {name}": value for name, value in layout.items()}
    return {**config_values(config), **identity, **degrees}


def _differing(one: ListedStep, other: ListedStep) -> tuple[list[DifferingTensor], list[str]]:
    from hekaton.checkpoint.disk.manifest import stored_in

    assert one.manifest is not None
    assert other.manifest is not None
    mine, theirs = stored_in(one.folder, one.manifest), stored_in(other.folder, other.manifest)
    found: list[DifferingTensor] = []
    for name in mine:
        if name in theirs:
            found += _compared(name, (one, mine), (other, theirs))
    return found, sorted(mine.keys() ^ theirs.keys())


def _compared(
    name: str, one: tuple[ListedStep, StoredTensors], other: tuple[ListedStep, StoredTensors]
) -> Iterator[DifferingTensor]:
    mine, theirs = (stored[name] for _, stored in (one, other))
    size = prod(mine.shape)
    if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
        yield DifferingTensor(name, size, size, None)
        return
    first, second = (_whole(name, step, stored) for step, stored in (one, other))
    unequal = _bits(first).ne(_bits(second)).any(dim=1)
    if unequal.any():
        largest = (first.double() - second.double()).abs().max()
        yield DifferingTensor(name, int(unequal.sum()), size, float(largest))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of each value, (values, bytes): NaN equals itself, and 0.0 is not -0.0."""
    import torch

    return tensor.reshape(-1, 1).view(torch.uint8)


def _whole(name: str, step: ListedStep, stored: StoredTensors) -> torch.Tensor:
    import torch

    from hekaton.checkpoint.disk.stored import dtypes
    from hekaton.checkpoint.tensors.reading import read

    assert step.manifest is not None
    tensor = torch.empty(stored[name].shape, dtype=dtypes()[stored[name].dtype])
    read({name: tensor}, step.folder, stored, step.manifest.files, verify=())
    return tensor
