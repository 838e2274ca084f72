"""Does a model compute on every layout what it computes on one process?"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence

from hekaton.testing.distributed import NamedLayout
from hekaton.testing.steps import train_steps

EIGHT_LAYOUTS = ("replicate2", "shard2", "cp2", "tp2", "pp2", "shard2 tp2", "shard2 pp2", "tp2 pp2")

_FLOAT64 = [
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64",
]  # fmt: skip


def check_layouts(
    *arguments: str,
    layouts: Sequence[str] = EIGHT_LAYOUTS,
    rows: int = 4,
    steps: int = 3,
    tolerance: float = 1e-9,
    timeout: float = 100.0,
) -> None:
    """Train a few steps in float64 on one process and under each layout, and compare what they compute.

    The losses and the norms of the gradients of all steps must be the same. The processes of one number serve
    all layouts of that number, so that eight layouts of a small model take seconds.

    :param arguments: of ``hekaton train``: TOML files and flags, without those of the layout, the batch size
        and the precision.
    :param layouts: short names, see :class:`~hekaton.testing.distributed.NamedLayout`.
    :param rows: rows of a step, which the data-parallel degrees must divide.
    :param tolerance: the largest relative difference.
    :param timeout: in seconds, of each number of processes.
    :raises AssertionError: naming the layouts that differ and by how much, or the layout that failed with its
        error.
    """
    batch = ["--training.global_batch_size", str(rows), "--training.local_batch_size"]
    named = [NamedLayout(name) for name in layouts]
    runs = {
        layout.name: [*arguments, *_FLOAT64, *layout.flags, *batch, str(rows // layout.dp)]
        for layout in named
    }
    with tempfile.TemporaryDirectory() as folder:
        alone = train_steps(
            {"one process": [*arguments, *_FLOAT64, *batch, str(rows)]},
            processes=1, steps=steps, folder=folder, timeout=timeout,
        )["one process"]  # fmt: skip
        wrong = []
        by_processes = sorted(named, key=lambda layout: layout.processes)
        for processes, group in itertools.groupby(by_processes, key=lambda layout: layout.processes):
            names = [layout.name for layout in group]
            numbers = train_steps(
                {name: runs[name] for name in names},
                processes=processes, steps=steps, folder=folder, timeout=timeout,
            )  # fmt: skip
            wrong += [text for name in names if (text := _difference(name, numbers[name], alone, tolerance))]
    if wrong:  # pytest adds the expression to the message of an assert
        raise AssertionError("these layouts do not compute what one process does:\n" + "\n".join(wrong))


def _difference(
    name: str, got: list[tuple[float, float]], expected: list[tuple[float, float]], tolerance: float
) -> str:
    """The first number that differs, as a sentence; empty if none does."""
    for step, (ours, theirs) in enumerate(zip(got, expected, strict=True), start=1):
        for what, number, its in zip(("loss", "gradient norm"), ours, theirs, strict=True):
            if not abs(number - its) <= tolerance * abs(its):
                return f"{name}: the {what} of step {step} is {number}, on one process {its}"
    return ""
