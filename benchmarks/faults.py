"""Runs that are disturbed by random faults, started again, and compared with one that nothing disturbed.

    python benchmarks/faults.py [--faults 300] [--kinds "one process" torchrun SLURM] [--only "link cut"]
        [--seed 1] [--kept FILE]

Prints a table of what was done and what happened, and where the time of these runs went; with ``--kept``, of
all runs that the file keeps. The faults are those of ``tests/operations``, whose tests take a few. torchrun's
link and SLURM need root, network namespaces and Debian's slurmctld, slurmd, slurm-client and munge. The exit
status is 1 where something was not as it has to be. ``--hang_seconds`` is 6, which may be too little for a
machine that has other work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/operations"))

from fault_lab import BUSY, NO_FAULT, Lab, Outcome, Wrong
from lab_faults import Fault
from lab_starts import INTERVAL, Job, Single, Torchrun

from hekaton.accounting import Account

SHARES = {Single.kind: 0.6, Torchrun.kind: 0.2, Job.kind: 0.2}
A_RUN = 5
"""Faults of a run."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--kinds", nargs="*", default=list(SHARES))
    parser.add_argument("--only", nargs="*", default=[], help="names of faults, as the table has them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--hang_seconds", type=float, default=6.0, help="more on a slow machine")
    parser.add_argument("--kept", type=Path, default=None, help="outcomes, a run per line; appended to")
    parser.add_argument("--minutes", type=float, default=1e6, help="begins no run after so many")
    arguments = parser.parse_args()
    wrong = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.folder))
        kept = arguments.kept or Path(folder, "kept.jsonl")
        lab = stack.enter_context(Lab(Path(folder).resolve(), arguments.kinds, hang=arguments.hang_seconds))
        for kind in arguments.kinds:
            share = SHARES[kind] / sum(SHARES[one] for one in arguments.kinds)
            number, end = round(share * arguments.faults), time.monotonic() + 60 * arguments.minutes
            wrong += disturb(lab, kind, number, Random(arguments.seed), end=end, kept=kept)
        runs = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    outcomes = [Outcome(**one) for run in runs for one in run["outcomes"]]
    accounts = [(run["outcomes"][0]["kind"], Account(**run["account"])) for run in runs if run["account"]]
    print("\n".join(["", *table(outcomes), "", *broken_down(accounts)]))
    not_right = sum(any(one["wrong"] for one in run["outcomes"]) for run in runs)
    print(f"\n{len(outcomes)} faults, {len(runs)} runs, {not_right} not as they have to be")
    sys.exit(bool(wrong))


def disturb(lab: Lab, kind: str, number: int, random: Random, *, end: float, kept: Path) -> int:
    """So many faults of runs of one kind, each as often as the others; no run begins after ``end``.

    :param kept: a line is added for each run.
    :returns: how many runs were not as they have to be.
    """
    wrong = done = 0
    to_come: list[Fault] = []
    while done < number and wrong < 5 and time.monotonic() < end:
        while len(to_come) < A_RUN:
            to_come += random.sample(faults := lab.faults(kind), len(faults))
        began, account = time.time(), None
        try:
            found = lab.disturb(kind, to_come[: min(A_RUN, number - done)], random)
            account = asdict(lab.accounts[-1][1])
        except Wrong as error:
            wrong += 1
            found = list(error.outcomes)
            print(f"wrong: {error}", flush=True)
        if found:
            with kept.open("a", encoding="utf-8") as file:
                said = {
                    "hang_seconds": lab.hang,
                    "outcomes": [asdict(one) for one in found],
                    "account": account,
                }
                file.write(json.dumps(said) + "\n")
        caused = [one for one in found if one.fault not in (BUSY, NO_FAULT)]
        to_come = to_come[len(caused) or 1 :]
        done += len(caused)
        print(f"{kind}: {done} of {number}, {time.time() - began:.0f} s for {len(caused)}", flush=True)
        for one in found:
            print(f"    {one}", flush=True)
    return wrong


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for each way to start and fault."""
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        groups[one.kind, one.fault].append(one)
    lines = [
        "| started by | fault | times | ended with | steps lost, at most | seconds, at most |",
        "| --- | --- | ---: | --- | ---: | ---: |",
    ]
    for (kind, fault), those in groups.items():
        statuses = Counter(_end_of(one) for one in those)
        ended = ", ".join(f"{status} ({times})" for status, times in sorted(statuses.items()))
        seconds = max((one.seconds for one in those if one.status is not None), default=0.0)
        lost = max(one.lost for one in those)
        lines.append(f"| {kind} | {fault} | {len(those)} | {ended} | {lost} | {seconds:.1f} |")
    return lines


def _end_of(outcome: Outcome) -> str:
    if outcome.wrong:
        return "wrong"
    return "went on" if outcome.status is None else str(outcome.status)


def broken_down(accounts: Sequence[tuple[str, Account]]) -> list[str]:
    """Where the time of the runs went, for each way to start."""
    lines = [
        f"| started by | {' | '.join(NAMES)} | named | goodput |",
        f"| --- |{' ---: |' * (len(NAMES) + 2)}",
    ]
    for kind in dict.fromkeys(kind for kind, _ in accounts):
        those = [account for of, account in accounts if of == kind]
        total = sum(one.total for one in those)
        shares = [sum(one.seconds.get(name, 0.0) for one in those) / total for name in NAMES]
        named = sum(sum(one.seconds.values()) for one in those) / total
        goodput = sum(one.goodput * one.total for one in those) / total
        cells = " | ".join(f"{share:.1%}" for share in [*shares, named, goodput])
        lines.append(f"| {kind} | {cells} |")
    return [f"Shares of wall time; a checkpoint every {INTERVAL} steps:", "", *lines]


NAMES = (
    "start-up", "load", "data wait", "compile", "compute", "optimizer", "between steps", "save", "lost work",
    "down", "end",
)  # fmt: skip

if __name__ == "__main__":
    main()
