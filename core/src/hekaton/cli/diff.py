"""``hekaton diff RUN_A RUN_B``: where two runs part, and what may explain it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.cli.arguments import as_path
from hekaton.errors import ConfigError

if TYPE_CHECKING:
    from hekaton.differing import DifferingTensor

USAGE = """\
usage: hekaton diff RUN_A RUN_B [--all]

Say at which step two runs differ first, in what they logged and in the tensors of the steps that both saved,
and what differs in their configurations, data, versions and code. RUN_A and RUN_B are run folders
(job.dump_folder). Rates, seconds and memory are not compared. The exit status is 1 when a logged number or a
tensor differs, else 0.

  --all    every tensor and value that differs, not the first 10"""
SHOWN = 10
DIFFER = 1


def run(arguments: list[str]) -> int:
    """Run ``hekaton diff ARGUMENTS``.

    :returns: 0, or 1 where a logged number or a tensor differs.
    """
    from hekaton.cli import plugin_flags

    _, rest = plugin_flags(arguments)
    if not rest or set(rest) & {"-h", "--help"}:
        print(USAGE)
        return 0
    options = [one for one in rest if one.startswith("-")]
    folders = [one for one in rest if not one.startswith("-")]
    if options not in ([], ["--all"]) or len(folders) != 2:
        wrong = next((one for one in options if one != "--all"), "")
        message = f"unknown option {wrong} of hekaton diff" if wrong else "hekaton diff takes two run folders"
        raise ConfigError(message, hint=USAGE.splitlines()[0])
    one, other = (Path(as_path(folder)) for folder in folders)
    return diff(one, other, at_most=None if options else SHOWN)


def diff(one: Path, other: Path, *, at_most: int | None) -> int:
    """Print what differs between two run folders.

    :param at_most: tensors and values that are listed.
    """
    from hekaton.differing import differing_values, first_logged, first_saved, run_files
    from hekaton.identity.values import shown

    first, second = run_files(one), run_files(other)
    logged, saved = first_logged(first, second), first_saved(first, second)
    for folder, files in ((one, first), (other, second)):
        if files.skipped:
            print(f"{folder}: {files.skipped} lines of metrics.jsonl are none of a run's, and skipped")
    both = first.logged.keys() & second.logged.keys()
    if logged is not None:
        step, metrics = logged
        numbers = ", ".join(f"{name} {mine!r} and {theirs!r}" for name, (mine, theirs) in metrics.items())
        print(f"logged: step {step} differs: {numbers}")
    else:
        print(f"logged: equal in {len(both)} steps that both have")
    if saved is not None:
        number, tensors, alone = saved
        print(
            f"saved: step-{number} differs: {len(tensors)} tensors, and {len(alone)} that one run has alone"
        )
        rows = [f"{tensor.name}: {_how(tensor)}" for tensor in tensors]
        _list([*rows, *(f"{name}: one run has it alone" for name in alone)], at_most)
    else:
        print(f"saved: equal in {len(first.saved.keys() & second.saved.keys())} steps that both have")
    for folder, mine, theirs in ((one, first, second), (other, second, first)):
        _say_alone("logged", folder, mine.logged.keys() - theirs.logged.keys())
        _say_alone("saved", folder, mine.saved.keys() - theirs.saved.keys())
    values = differing_values(first, second)
    print(f"values that differ: {len(values)}")
    _list([f"{name}: {_pair(shown, pair)}" for name, pair in values.items()], at_most)
    return DIFFER if logged or saved else 0


def _say_alone(what: str, folder: Path, steps: Set[int]) -> None:
    if steps:
        print(f"{what} by {folder} alone: {len(steps)} steps, {min(steps)} to {max(steps)}")


def _how(tensor: DifferingTensor) -> str:
    if tensor.largest is None:
        return "of another shape or type"
    return f"{tensor.values:,} of {tensor.size:,} values, by up to {tensor.largest:.3g}"


def _pair(shown: Any, pair: tuple[Any, Any]) -> str:
    return f"{shown(pair[0])} and {shown(pair[1])}"


def _list(rows: Sequence[str], at_most: int | None) -> None:
    for row in rows[:at_most]:
        print(f"  {row}")
    if at_most is not None and len(rows) > at_most:
        print(f"  ... and {len(rows) - at_most} more (--all)")
