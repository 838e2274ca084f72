"""The processes of a run compare what they are: one digest a subject, and details only where these differ.

Equal digests cost each process a few messages of some hundred bytes. Where some differ, every process gathers
the digests of those subjects, and one process for each of the most frequent digests sends its values. So
nothing that a process does grows faster than their number.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from hekaton.errors import Disagreement
from hekaton.identity.subjects import Subject
from hekaton.identity.values import Values, shown

log = logging.getLogger("hekaton")

MIN_SLOTS = 16
"""Digests that are exchanged at least: the number is the same where versions have other subjects."""
MOST_GROUPS = 8
"""Different values of one subject that are looked at in detail."""
MOST_LINES = 20
_NO_SAY = -(2**63)
_MISSING = object()


def agree(of_process: Callable[[], Sequence[Subject]]) -> None:
    """Compare this process's subjects with those of all others; log, on the first one, what is a notice.

    Collective, over the default process group.

    :param of_process: gives the subjects; one process alone needs none.
    :raises Disagreement: the same on all processes, with every value that differs and who has which.
    """
    if dist.get_world_size() == 1:
        return
    subjects = of_process()
    differing = _differing(subjects)
    if not differing:
        return
    told = _details([subjects[slot] if slot < len(subjects) else _NOTHING for slot in differing])
    wrong = [lines for subject, lines in told if subject.must_agree]
    if dist.get_rank() == 0:
        for subject, lines in told:
            if not subject.must_agree:
                log.warning("notice: processes have different %s: %s", subject.name, "; ".join(lines))
    if wrong:
        lines = [line for lines in wrong for line in lines]
        more = len(lines) - MOST_LINES
        shown = [*lines[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])]
        cures = dict.fromkeys(subject.cure for subject, _ in told if subject.must_agree and subject.cure)
        error = Disagreement(
            "the processes of this run differ:\n" + "\n".join(f"  {line}" for line in shown),
            hint="\n".join(cures),
        )
        error.everywhere = True
        raise error


_NOTHING = Subject(name="other subjects", values={}, cure="install the same versions on all machines")


def _differing(subjects: Sequence[Subject]) -> list[int]:
    """The places of the subjects of which processes have different digests."""
    slots = max(MIN_SLOTS, len(subjects))
    digests = [0] * slots
    for slot, subject in enumerate(subjects):
        digests[slot] = _digest(subject)
    # The least of all is the complement of the greatest complement: one exchange for both.
    complements = [_NO_SAY if digest == _NO_SAY else ~digest for digest in digests]
    greatest, complement = _greatest(torch.tensor([digests, complements], dtype=torch.int64)).tolist()
    return [
        slot
        for slot in range(slots)
        if greatest[slot] != ~complement[slot] and (greatest[slot], complement[slot]) != (_NO_SAY, _NO_SAY)
    ]


def _greatest(mine: torch.Tensor) -> torch.Tensor:
    """The greatest of each element of all processes.

    Each has it after log2(processes) messages to others, twice as far away each time. An all-reduce of gloo
    goes around a ring twice: every process waits for every other one.
    """
    rank, processes = dist.get_rank(), dist.get_world_size()
    theirs, distance = torch.empty_like(mine), 1
    while distance < processes:
        sent = dist.isend(mine, (rank + distance) % processes)
        dist.recv(theirs, (rank - distance) % processes)
        assert sent is not None
        sent.wait()
        mine = torch.maximum(mine, theirs)
        distance *= 2
    return mine


def _digest(subject: Subject) -> int:
    if subject.values is None:
        return _NO_SAY
    text = json.dumps([subject.name, subject.values], sort_keys=True)
    return int.from_bytes(xxhash.xxh3_64(text.encode()).digest(), "little", signed=True)


def _details(subjects: Sequence[Subject]) -> list[tuple[Subject, list[str]]]:
    """The subjects with a line for each value that differs, the same on all processes; without those of which
    only ranks differ that have no say."""
    mine = ([None if subject.values is None else _digest(subject) for subject in subjects], platform.node())
    of_all: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_all, mine)
    hosts = [host for _, host in of_all]
    groups: list[list[list[int]]] = []
    shown: set[tuple[int, int]] = set()
    for slot in range(len(subjects)):
        ranks: dict[int, list[int]] = {}
        for rank, (digests, _) in enumerate(of_all):
            if digests[slot] is not None:
                ranks.setdefault(digests[slot], []).append(rank)
        # Of digests as frequent as each other, that of the lowest rank first.
        ordered = sorted(ranks.values(), key=lambda members: (-len(members), members[0]))
        groups.append(ordered)
        shown.update((slot, members[0]) for members in ordered[:MOST_GROUPS])
    rank = dist.get_rank()
    sent = {slot: _to_send(subjects[slot]) for slot in range(len(subjects)) if (slot, rank) in shown}
    of_shown: dict[int, dict[int, tuple[Subject, Values]]] = {}
    for sender in sorted({rank for _, rank in shown}):
        box: list[Any] = [sent if sender == rank else None]
        dist.broadcast_object_list(box, src=sender)
        of_shown[sender] = box[0]
    told = []
    for slot, ordered in enumerate(groups):
        seen = [(of_shown[members[0]][slot], members) for members in ordered[:MOST_GROUPS]]
        subject = seen[0][0][0]  # other versions of hekaton may have other subjects
        rest = [rank for members in ordered[MOST_GROUPS:] for rank in members]
        lines = _lines(subject, seen, rest, hosts)
        if lines:
            told.append((subject, lines))
    return told


def _to_send(subject: Subject) -> tuple[Subject, Values]:
    """A subject, and its details, which are asked for only here."""
    return replace(subject, details=None), {} if subject.details is None else subject.details()


def _lines(
    subject: Subject,
    seen: Sequence[tuple[tuple[Subject, Values], list[int]]],
    rest: Sequence[int],
    hosts: Sequence[str],
) -> list[str]:
    """A line for each value that differs; where details of it differ, theirs.

    :param seen: the subject and its details on the ranks that have these.
    """
    values = [(one.values or {}, members) for (one, _), members in seen]
    of_details = [(details, members) for (_, details), members in seen]
    absent = None if subject.optional else subject.absent
    details = _differences(of_details, subject.absent, hosts)
    lines = []
    for name, line in _differences(values, absent, hosts).items():
        lines += [detail for key, detail in details.items() if key.startswith(f"{name}: ")] or [line]
    if rest:
        lines.append(f"{subject.name}: other values still on {ranks_on(sorted(rest), hosts)}")
    return lines or ([] if subject.optional else [f"{subject.name}: not the same"])


def _differences(
    seen: Sequence[tuple[Values, list[int]]], absent: str | None, hosts: Sequence[str]
) -> dict[str, str]:
    """:param absent: what is said where a value lacks; ``None`` leaves those ranks out."""
    lines = {}
    for name in dict.fromkeys(name for values, _ in seen for name in values):
        who: dict[str, list[int]] = {}
        for values, members in seen:
            value = values.get(name, _MISSING)
            if value is _MISSING and absent is None:
                continue
            text = str(absent) if value is _MISSING else shown(value)
            who.setdefault(text, []).extend(members)
        if len(who) > 1:
            ordered = sorted(who.items(), key=lambda item: (-len(item[1]), min(item[1])))
            said = ", ".join(f"{text} on {ranks_on(sorted(members), hosts)}" for text, members in ordered)
            lines[name] = f"{name}: {said}"
    return lines


def ranks_on(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """``511 ranks``, ``rank 7 (node b)``, ``ranks 8-15 (node b)``."""
    ranges: list[list[int]] = []
    for rank in ranks:
        if ranges and ranges[-1][1] == rank - 1:
            ranges[-1][1] = rank
        else:
            ranges.append([rank, rank])
    machines = {hosts[rank] for rank in ranks}
    where = f" ({machines.pop()})" if len(machines) == 1 else ""
    if len(ranges) > 4 or (not where and len(ranks) > 8):
        return f"{len(ranks)} ranks{where}"
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}{where}"
