"""The folders that a run writes: shown to be writable, and one folder for all machines, before it starts.

A checkpoint folder on a local disk of each machine takes every save without a word, and holds parts of steps
that nobody can put together again. So the first process of each machine writes a small file there, process 0
must see them all, and all must see that of process 0.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hekaton.checkpoint.disk.folders import Folder, folder_at, reason_of, write_whole
from hekaton.errors import CheckpointError

if TYPE_CHECKING:
    from hekaton.checkpoint.ranks import Ranks
    from hekaton.config import JobConfig

SEEN_WITHIN = 10.0
"""Seconds in which a file that one machine wrote must be seen by another: network file systems keep listings
for some seconds."""
_PROBE = ".hekaton-probe"
_NAMED = 4
"""Machines that a message names; the others are counted."""

SHARE = """\
every process writes its part of each checkpoint there: set job.dump_folder or checkpoint.folder to a path \
that all machines share,
or checkpoint.folder to a URL such as s3://bucket/run
to train without checkpoints: --checkpoint.no-enable"""
WRITABLE = "choose another job.dump_folder"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that a run writes to.

    :param name: what it is, for messages.
    :param shared: whether it must be the same folder on all machines, and every one writes there.
    :param by_all: whether every machine writes there, into a folder that may be its own.
    """

    name: str
    folder: Folder
    shared: bool = False
    by_all: bool = False
    hint: str = ""


def places_of(config: JobConfig) -> list[Place]:
    """The folders that a run of this configuration writes to."""
    profiling = config.profiling
    profiles = {
        "save_traces_folder": profiling.enable_profiling,
        "save_memory_snapshot_folder": profiling.enable_memory_snapshot,
    }
    metrics = config.metrics
    dump_folder = folder_at(config.job.dump_folder)
    places = []
    files = bool(config.job.save_config_file or config.logger_names())
    if files or any(profiles.values()) or not config.only_loads():
        by_all = metrics.save_for_all_ranks or any(profiles.values())
        places.append(Place(name="job.dump_folder", folder=dump_folder, by_all=by_all, hint=WRITABLE))
    for field, is_written in profiles.items():
        if is_written:
            folder = dump_folder / getattr(profiling, field)
            hint = f"choose another profiling.{field}"
            places.append(Place(name=f"profiling.{field}", folder=folder, by_all=True, hint=hint))
    if config.checkpoint.enable and not config.only_loads():
        folder = folder_at(config.checkpoint.folder, within=config.job.dump_folder)
        places.append(Place(name="the checkpoint folder", folder=folder, shared=True, hint=SHARE))
    return places


def check_places(places: Sequence[Place], ranks: Ranks, *, wait: float = SEEN_WITHIN) -> None:
    """Check that the folders can be written, and the shared ones are the same on all machines.

    Collective. What it writes it removes again, and the folders that it made for that.

    :param wait: seconds in which what one machine writes must be seen by another.
    :raises CheckpointError: on all ranks, with everything that is wrong.
    """
    gathered = ranks.gather((machine(), platform.node(), secrets.token_hex(4)))
    keys, hosts, tokens = (list(column) for column in zip(*gathered, strict=True))
    firsts = {key: rank for rank, key in reversed(list(enumerate(keys)))}
    first_ones = [rank for rank, key in enumerate(keys) if firsts[key] == rank]
    mine = [
        place
        for place in places
        if ranks.is_first or (ranks.rank in first_ones and (place.shared or place.by_all))
    ]
    made: list[Path] = []
    with contextlib.ExitStack() as probes:
        problems = []
        for place in mine:
            made += _absent(place.folder)
            try:
                probes.enter_context(_probe(place.folder, f"{_PROBE}-{tokens[0]}-{ranks.rank}"))
            except OSError as error:
                why = f"{reason_of(error)}{_whose(ranks.rank, hosts)}"
                problems.append(_Problem(f"cannot write to {place.name} {place.folder}", why, place.hint))
        found = _united(problems, ranks)
        others = [rank for rank in first_ones if rank != 0]
        if others and found is None:
            expected = others if ranks.is_first else [0] if ranks.rank in others else []
            names = {f"{_PROBE}-{tokens[0]}-{rank}": f"rank {rank} ({hosts[rank]})" for rank in expected}
            me = f"rank {ranks.rank} ({hosts[ranks.rank]})"
            unseen = [_unseen(place, names, me, wait) for place in mine if place.shared]
            found = _united([problem for problem in unseen if problem is not None], ranks)
    ranks.least(1)  # no folder is empty before all have removed their files
    for folder in sorted(made, key=lambda one: len(one.parts), reverse=True):
        with contextlib.suppress(OSError):  # somebody else writes there
            folder.rmdir()
    if found is not None:
        raise found


def machine() -> str:
    """Equal for processes that see the same disks: of one machine, container and user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        mounts = str(Path("/proc/self/ns/mnt").readlink())
    except OSError:  # not Linux
        boot = mounts = ""
    facts = (platform.node(), boot, mounts, str(getattr(os, "getuid", int)()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Problem:
    what: str
    why: str
    hint: str


def _whose(rank: int, hosts: Sequence[str]) -> str:
    return f", on rank {rank} ({hosts[rank]})" if len(hosts) > 1 else ""


def _absent(folder: Folder) -> list[Path]:
    """The folders that making this one makes."""
    return [one for one in [folder, *folder.parents] if not one.exists()] if isinstance(folder, Path) else []


@contextlib.contextmanager
def _probe(folder: Folder, name: str) -> Iterator[None]:
    """A small file in a folder, which is made where it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, b"hekaton looks whether this folder can be written and is shared\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def _unseen(place: Place, names: Mapping[str, str], me: str, wait: float) -> _Problem | None:
    """What this rank does not see of what others have written.

    :param names: names of their files, and who wrote them.
    """
    end = time.monotonic() + wait
    pause = 0.01
    while True:
        try:
            seen = {entry.name for entry in place.folder.iterdir()}
        except OSError as error:
            return _Problem(
                f"cannot read {place.name} {place.folder}", f"{reason_of(error)}, on {me}", place.hint
            )
        missing = [who for name, who in names.items() if name not in seen]
        if not missing:
            return None
        if time.monotonic() > end:
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return _Problem(
        f"{place.name} {place.folder} is not one folder for all machines",
        f"{me} does not see what is written there by {', '.join(missing[:_NAMED])}{more}, {wait:g} s after",
        place.hint,
    )


def _united(problems: Sequence[_Problem], ranks: Ranks) -> CheckpointError | None:
    """What all ranks have found, as one error that is the same on all of them."""
    if ranks.least(0 if problems else 1):
        return None
    found: dict[str, list[_Problem]] = {}
    for problem in chain.from_iterable(ranks.gather(list(problems))):
        found.setdefault(problem.what, []).append(problem)
    messages = []
    for what, same in found.items():
        more = f"; and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        messages.append(f"{what}: {'; '.join(problem.why for problem in same[:_NAMED])}{more}")
    hints = dict.fromkeys(problem.hint for same in found.values() for problem in same if problem.hint)
    error = CheckpointError("\n".join(messages), hint="\n".join(hints))
    error.everywhere = ranks.size > 1
    return error
