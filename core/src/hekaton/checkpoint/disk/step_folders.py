"""The step folders on disk: which exist, making room for a new one, committing it, removing old ones.

Only rank 0 calls these. Looking for steps changes nothing: another run may be writing. At no moment does a
half-written or half-removed folder look whole.
"""

from __future__ import annotations

import errno
import logging
import re
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hekaton.checkpoint.disk.folders import (
    Folder,
    check_subfolder,
    files_in,
    is_there,
    move,
    read_file,
    reason_of,
    remove,
    sync,
    write_whole,
)
from hekaton.checkpoint.disk.manifest import (
    MANIFEST,
    MAX_MANIFEST,
    FileRecord,
    Manifest,
    NotWhole,
    Unfinished,
)
from hekaton.checkpoint.disk.places import SEEN_WITHIN
from hekaton.errors import CheckpointError

log = logging.getLogger("hekaton")

SUPERSEDED = "superseded"
UNFINISHED = "unfinished"
_STEP = re.compile(r"step-(\d+)(\.replaced)?")
_EXPORT = re.compile(r"step-(\d+)-.+")


class StepFolders:
    """The folders ``step-N`` of one run.

    :param root: the checkpoint folder; made by the first save.
    """

    def __init__(self, root: Folder) -> None:
        self.root = root

    def path(self, step: int) -> Folder:
        return self.root / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that have a folder, whole or not, oldest first."""
        return list(self.found())

    def found(self) -> dict[int, Folder]:
        """The steps, oldest first, and the folder to read each from: the old one where the save that was to
        replace it did not end."""
        if not is_there(self.root):
            return {}
        names = {
            entry.name: int(match[1])
            for entry in self.root.iterdir()
            if (match := _STEP.fullmatch(entry.name)) and entry.is_dir()
        }
        replaced = {step for name, step in names.items() if name != f"step-{step}"}
        return {
            step: self._replaced(step)
            if step in replaced and not self.has_manifest(step)
            else self.path(step)
            for step in sorted(set(names.values()))
        }

    def check_names(self) -> None:
        """Check, before a run begins, that nothing stands in the way of its saves.

        :raises OSError: when what should be a folder is something else, or ``superseded`` is on another disk,
            to which no folder can be renamed.
        """
        if not is_there(self.root):
            return
        superseded = self.root / SUPERSEDED
        check_subfolder(superseded)
        for folder in (self.root, superseded):
            for entry in folder.iterdir() if is_there(folder) else ():
                if _STEP.fullmatch(entry.name) or _EXPORT.fullmatch(entry.name):
                    check_subfolder(entry)
        if (
            isinstance(superseded, Path)
            and superseded.exists()
            and superseded.stat().st_dev != superseded.parent.stat().st_dev
        ):
            raise OSError(errno.EXDEV, f"'{SUPERSEDED}' leads to another disk", str(superseded))

    def saved(self) -> list[int]:
        """The steps that were saved to the end, whether or not they are whole still."""
        return [
            step
            for step, folder in self.found().items()
            if is_there(folder / MANIFEST) or not _is_unfinished(folder)
        ]

    def has_manifest(self, step: int) -> bool:
        return is_there(self.path(step) / MANIFEST)

    def manifest(self, step: int) -> Manifest:
        """:raises NotWhole: when there is none, or it cannot be read."""
        return read_manifest(self.path(step))

    def make_room(self, step: int, *, came_from: int) -> None:
        """Make an empty folder for ``step``: a whole one of this run is kept until the new one is whole.

        :param came_from: as for :meth:`set_aside`.
        """
        self.finish_interrupted()
        self.root.mkdir(parents=True, exist_ok=True)
        for other in self.steps():
            if other >= step and not self.has_manifest(other):
                _remove(self.path(other))
        self.set_aside(came_from)
        if self.has_manifest(step):
            move(self.path(step), self._replaced(step), key=MANIFEST)
        self.path(step).mkdir()
        write_whole(self.path(step) / UNFINISHED, b"a save is writing here\n")
        sync(self.root)

    def set_aside(self, came_from: int) -> None:
        """Move the whole steps after ``came_from`` to ``superseded/``.

        They belong to a future that this run does not continue (it resumed from an older step than the
        newest, went back, or started anew), and would win over this run's steps when it is resumed. So do the
        exports of those steps (``step-N-hf``), whether the step is still there or not: they would be taken
        for this run's.
        """
        aside = []
        for export in self._exports(after=came_from):
            self._move_aside(export, key=export.name)
            aside.append(export.name)
        for step in self.steps():
            if step > came_from and self.has_manifest(step):
                self._move_aside(self.path(step), key=MANIFEST)
                aside.append(f"step-{step}")
        if aside:
            log.warning(
                "%s: newer than step %d, which this run resumes from; moved to %s",
                ", ".join(aside), came_from, self.root / SUPERSEDED,
            )  # fmt: skip

    def commit(self, step: int, manifest: Manifest) -> None:
        """Write the manifest: from here on, and not before, the step exists."""
        commit_manifest(self.path(step), manifest)
        (self.path(step) / UNFINISHED).unlink(missing_ok=True)
        _remove(self._replaced(step))

    def abandon(self, step: int) -> None:
        """Remove what a failed save left, and put back the step that it was to replace."""
        try:
            if not self.has_manifest(step):
                _remove(self.path(step))
            self.finish_interrupted()
        except OSError as error:
            log.warning("cannot remove what remains of %s: %s", self.path(step), reason_of(error))

    def finish_interrupted(self) -> None:
        """Finish what a crash cut short while a step was being replaced."""
        for step in self.steps():
            if not is_there(self._replaced(step)):
                continue
            if self.has_manifest(step):
                _remove(self._replaced(step))
            else:
                _remove(self.path(step))
                move(self._replaced(step), self.path(step), key=MANIFEST)
                log.warning(
                    "%s: restored, since the save that was to replace it was interrupted", self.path(step)
                )

    def prune(self, keep: int) -> None:
        """Keep the newest ``keep`` good steps; 0 keeps all. Steps that are not good, and those that hold the
        model only, count for themselves.

        Unfinished folders older than the newest whole step go too. What cannot be removed is reported.
        """
        if keep == 0:
            return
        whole: dict[tuple[bool, bool], list[int]] = defaultdict(list)
        unfinished = []
        for step in self.steps():
            try:
                manifest = self.manifest(step)
                whole[manifest.good, manifest.model_only].append(step)
            except NotWhole:
                if not self.has_manifest(step):
                    unfinished.append(step)
        newest = max((steps[-1] for steps in whole.values()), default=0)
        old = [step for steps in whole.values() for step in steps[:-keep]]
        old += [step for step in unfinished if step < newest]
        for step in old:
            try:
                _remove(self.path(step))
            except OSError as error:
                log.warning("cannot remove the old checkpoint %s: %s", self.path(step), reason_of(error))

    def _replaced(self, step: int) -> Folder:
        return self.root / f"step-{step}.replaced"

    def _exports(self, *, after: int) -> list[Folder]:
        """The folders ``step-N-...``, each the model of a step in another layout, of steps past ``after``.
        There are none behind a URL: exports are written to the disk."""
        if not isinstance(self.root, Path):
            return []
        found = [(entry, _EXPORT.fullmatch(entry.name)) for entry in sorted(self.root.iterdir())]
        return [entry for entry, match in found if match and int(match[1]) > after and entry.is_dir()]

    def _move_aside(self, folder: Folder, *, key: str) -> None:
        target = self.root / SUPERSEDED / folder.name
        target.parent.mkdir(exist_ok=True)
        remove(target, key=key)
        move(folder, target, key=key)


def step_of(folder: Folder) -> int | None:
    """The step that a folder is named after; ``None`` for any other name."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def read_manifest(folder: Folder) -> Manifest:
    """:raises NotWhole: when there is none, or it cannot be read; Unfinished when there never was one."""
    try:
        return Manifest.from_json(read_file(folder / MANIFEST, limit=MAX_MANIFEST))
    except FileNotFoundError:
        if _is_unfinished(folder):
            raise Unfinished("saving it was interrupted") from None
        raise NotWhole(f"it has no {MANIFEST}") from None
    except OSError as error:
        raise NotWhole(f"{MANIFEST} cannot be read: {reason_of(error)}") from error


def _is_unfinished(folder: Folder) -> bool:
    """Of a folder without a manifest, whether it never had one, instead of having lost it."""
    files = files_in(folder)
    return UNFINISHED in files or all(name.endswith(".tmp") for name in files)


def check_all_there(
    folder: Folder,
    files: Mapping[str, FileRecord],
    writers: Sequence[Collection[str]],
    *,
    wait: float = SEEN_WITHIN,
) -> None:
    """Check, before a step is committed, that this process sees every file of every rank with its size.

    :param writers: the files that each rank has written.
    :param wait: seconds for the caches of network file systems.
    :raises CheckpointError: naming the first file that is not there or has another size, and who wrote it.
    """
    end = time.monotonic() + wait
    pause = 0.01
    while True:
        there = files_in(folder)
        wrong = [name for name, record in files.items() if there.get(name) != record.size]
        if not wrong:
            return
        if time.monotonic() > end:
            break
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    name = wrong[0]
    rank = next((rank for rank, names in enumerate(writers) if name in names), 0)
    size = f"has {there[name]:,} bytes" if name in there else "is not there"
    more = f" ({len(wrong)} files in all)" if len(wrong) > 1 else ""
    raise CheckpointError(
        f"cannot write the checkpoint {folder}: rank {rank} wrote {files[name].size:,} bytes of {name}, "
        f"which {size} for rank 0{more}",
        hint="the folder is not, or no longer, the same for all machines: is it mounted on that of "
        f"rank {rank}?",
    )


def commit_manifest(folder: Folder, manifest: Manifest) -> None:
    """Make a folder whose files are written into a step that exists.

    :raises OSError: when it cannot be written, or no run would read it back.
    """
    sync(folder)
    data = manifest.to_json().encode()
    if len(data) > MAX_MANIFEST:
        raise OSError(errno.EFBIG, f"{MANIFEST} has more than {MAX_MANIFEST:,} bytes", str(folder))
    write_whole(folder / MANIFEST, data)


def _remove(folder: Folder) -> None:
    remove(folder, key=MANIFEST)
