"""The step folders on disk: which exist, making room for a new one, committing it, removing old ones.

Only rank 0 calls these. At no moment does a half-written or half-removed folder look whole.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import defaultdict
from pathlib import Path

from hekaton.checkpoint.integrity import MANIFEST, Manifest, NotWhole

log = logging.getLogger("hekaton")

SUPERSEDED = "superseded"
_STEP = re.compile(r"step-(\d+)")
_REPLACED = ".replaced"


class StepFolders:
    """The folders ``step-N`` of one run.

    :param root: the checkpoint folder; made by the first save.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, step: int) -> Path:
        return self.root / f"step-{step}"

    def steps(self) -> list[int]:
        """The steps that have a folder, whole or not, oldest first."""
        if not self.root.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.root.iterdir() if entry.is_dir())
        return sorted(int(match[1]) for match in matches if match)

    def has_manifest(self, step: int) -> bool:
        return (self.path(step) / MANIFEST).is_file()

    def manifest(self, step: int) -> Manifest:
        """:raises NotWhole: when there is none, or it cannot be read."""
        return read_manifest(self.path(step))

    def make_room(self, step: int, *, came_from: int) -> None:
        """Make an empty folder for ``step``.

        The steps after ``came_from`` belong to a future that this run does not continue (it resumed from an
        older step than the newest, or started anew). They would win over this run's steps when it is resumed,
        so they move to ``superseded/``. A whole ``step`` of this run is kept until the new one is whole.
        """
        self.finish_interrupted()
        self.root.mkdir(parents=True, exist_ok=True)
        aside = []
        for other in self.steps():
            if not self.has_manifest(other):
                if other >= step:
                    remove(self.path(other))
            elif other > came_from:
                self._supersede(other)
                aside.append(f"step-{other}")
        if aside:
            log.warning(
                "%s: newer than step %d, from which this run goes on; moved to %s",
                ", ".join(aside), came_from, self.root / SUPERSEDED,
            )  # fmt: skip
        if self.has_manifest(step):
            self.path(step).rename(self._replaced(step))
        self.path(step).mkdir()
        sync_folder(self.root)

    def commit(self, step: int, manifest: Manifest) -> None:
        """Write the manifest: from here on, and not before, the step exists."""
        folder = self.path(step)
        sync_folder(folder)
        temporary = folder / f"{MANIFEST}.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(manifest.to_json())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(folder / MANIFEST)
        sync_folder(folder)
        if self._replaced(step).exists():
            remove(self._replaced(step))

    def abandon(self, step: int) -> None:
        """Remove what a failed save left, and put back the step that it was to replace."""
        try:
            if not self.has_manifest(step):
                remove(self.path(step))
            self.finish_interrupted()
        except OSError as error:
            log.warning("what is left of %s cannot be removed: %s", self.path(step), error.strerror)

    def recovered_steps(self) -> list[int]:
        """The steps that have a folder, after what a crash cut short has been finished."""
        self.finish_interrupted()
        return self.steps()

    def finish_interrupted(self) -> None:
        """Finish what a crash cut short while a step was being replaced."""
        if not self.root.is_dir():
            return
        for old in self.root.glob(f"step-*{_REPLACED}"):
            current = old.with_suffix("")
            if (current / MANIFEST).is_file():
                remove(old)
            else:
                remove(current)
                old.rename(current)
                log.warning("%s: the save that was to replace it was interrupted; it is back", current)

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
                remove(self.path(step))
            except OSError as error:
                log.warning("cannot remove the old checkpoint %s: %s", self.path(step), error.strerror)

    def _replaced(self, step: int) -> Path:
        return self.root / f"step-{step}{_REPLACED}"

    def _supersede(self, step: int) -> None:
        target = self.root / SUPERSEDED / f"step-{step}"
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            remove(target)
        self.path(step).rename(target)
        sync_folder(target.parent)


def read_manifest(folder: Path) -> Manifest:
    """:raises NotWhole: when there is none, or it cannot be read."""
    try:
        return Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotWhole(f"it has no {MANIFEST}: saving or removing it was interrupted") from None
    except OSError as error:
        raise NotWhole(f"{MANIFEST} cannot be read: {error.strerror}") from error


def remove(folder: Path) -> None:
    """Remove a step folder, its manifest first: cut short, it is a step that does not exist."""
    if not folder.exists():
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that renames in it outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
