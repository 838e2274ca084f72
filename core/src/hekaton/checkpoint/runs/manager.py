"""Saving and loading steps: one call each, made by all ranks together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch.distributed as dist

from hekaton.checkpoint.disk.folders import Folder
from hekaton.checkpoint.disk.lock import FolderLock
from hekaton.checkpoint.disk.manifest import (
    MODEL,
    FileRecord,
    Manifest,
    NotWhole,
    shared_out,
    written_now,
)
from hekaton.checkpoint.disk.step_folders import StepFolders, check_all_there
from hekaton.checkpoint.disk.stored import StoredTensors, shown
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs.selection import Choose, OpenedStep, on_all, on_disk, use_elsewhere, use_newest
from hekaton.checkpoint.tensors.comparison import DoesNotFit, Parts, compare, flat, part_of, united
from hekaton.checkpoint.tensors.state import not_finite
from hekaton.errors import CheckpointError

log = logging.getLogger("hekaton")

Check: TypeAlias = Callable[[Manifest, DoesNotFit | None], None]


@dataclass(frozen=True)
class LoadedStep:
    """A step that was loaded."""

    step: int
    folder: Folder
    info: Mapping[str, Any]
    """What the run gave to :meth:`CheckpointManager.save` beside the tensors."""
    describe: Mapping[str, Any]
    """Configuration, model and layout of the run that saved it."""
    parts: frozenset[str]
    """The parts that were filled: all that were asked for, less optional ones that do not fit this run."""


class CheckpointManager:
    """Steps ``step-N/`` in one folder: DCP's files, and a manifest that is written last.

    Every method is collective: all ranks of the group call it, and an error on one is raised on all.

    :param folder: the ``checkpoint`` folder of the run; made by the first save.
    :param describe: kept in every manifest, JSON: ``config`` (the resolved configuration), ``model``,
        ``flavor``, ``layout`` (degrees of the mesh).
    :param keep_latest_k: how many good steps stay; older ones are removed once the new one is whole. 0 keeps
        all.
    :param group: the ranks that take part; it must be able to carry objects. The default group if not given;
        without any process group, this process alone.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        describe: Mapping[str, Any],
        keep_latest_k: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._folders = StepFolders(folder)
        self._lock = FolderLock(folder)
        self._describe = describe
        self._keep = keep_latest_k
        self._ranks = Ranks.of(group)
        self._has_own_group = False
        self._came_from = 0

    def lock(self) -> None:
        """Keep other runs off the folder, until :meth:`close` or the end of the process.

        :raises CheckpointError: when another run writes there, naming it, or the folder cannot be written.
        """

        def prepared() -> None:
            self._folders.check_names()
            self._lock.take()

        on_disk(self._ranks, f"cannot write to the checkpoint folder {self._folders.root}", prepared)

    def describe_further(self, more: Mapping[str, Any]) -> None:
        """Keep ``more``, JSON, in the ``describe`` of every manifest from here on."""
        self._describe = {**self._describe, **more}

    def close(self) -> None:
        """Release the lock."""
        if self._ranks.is_first:
            self._lock.release()

    def use_own_group(self) -> None:
        """From here on talk over a process group of the manager's own, on gloo and with its own timeout, so
        that one thread can save while another trains. Does nothing the second time.
        """
        if not (self._has_own_group or self._ranks.alone):
            members = None if self._ranks.group is None else dist.get_process_group_ranks(self._ranks.group)
            self._ranks = Ranks.of(dist.new_group(members, backend="gloo"))
            self._has_own_group = True

    def save(
        self,
        step: int,
        parts: Parts,
        info: Mapping[str, Any],
        *,
        good: bool = True,
        stalled: float | None = None,
    ) -> Folder:
        """Save a step; when this returns, it is whole and on the disk.

        :param parts: tensors by part (``model``, ``optimizer``, ...) and name. The model's keep their plain
            names on disk, others are stored as ``part.name``. A tensor that is not a DTensor is taken to be
            the same on all ranks that have its name.
        :param info: whatever else the run needs to go on, JSON. Dicts are united over the ranks; where ranks
            differ, the lowest one's word counts.
        :param good: whether the loss is finite. A step with a loss or weights that are not finite is no good:
            it never deletes a good step, and is resumed from only when asked for by number.
        :param stalled: for the log, where training goes on meanwhile: for how many seconds it did not.
        :returns: the folder of the step.
        :raises CheckpointError: when it cannot be written; what was there before is untouched.
        """
        from hekaton.checkpoint.tensors import dcp

        began = time.perf_counter()
        folder = self._folders.path(step)
        state = flat(parts)
        _check_names(parts)
        writing = f"cannot write the checkpoint {folder}"
        on_disk(self._ranks, writing, self._lock.check)
        try:
            on_disk(self._ranks, writing, lambda: self._folders.make_room(step, came_from=self._came_from))
            written = dcp.write(state, folder, self._ranks)
            # What all ranks say of their files grows with their number: rank 0 alone needs it.
            gathered = self._ranks.gather_at_first((written.files, info, not_finite(parts.get(MODEL, {}))))
            broken = [name for *_, names in gathered for name in names]
            of_ranks = [(files, info) for files, info, _ in gathered]
            manifest = self._manifest(
                step, parts, of_ranks, tensors=written.tensors, good=good and not broken
            )
            writers = [list(files) for files, _ in of_ranks]
            on_disk(self._ranks, writing, lambda: check_all_there(folder, manifest.files, writers))
            on_disk(self._ranks, writing, lambda: self._folders.commit(step, manifest))
        except CheckpointError:
            self._ranks.first(lambda: self._folders.abandon(step))
            raise
        self._came_from = step
        seconds = time.perf_counter() - began
        if self._ranks.is_first:
            gb = manifest.size / 1e9
            note = ", the model only" if manifest.model_only else ""
            note += "" if manifest.good else ", marked as not good"
            note += f": {broken[0]} is not finite" if broken else ""
            note += "" if stalled is None else f"; stalled training {stalled:.2f} s"
            log.info("saved %s: %.3f GB in %.2f s, %.2f GB/s%s", folder, gb, seconds, gb / seconds, note)
            self._folders.prune(self._keep)
        return folder

    def load(
        self,
        parts: Parts,
        *,
        step: int = -1,
        choose: Choose | None = None,
        optional: Collection[str] = (),
        check: Check | None = None,
    ) -> LoadedStep | None:
        """Fill the tensors in place from a step, whatever layout it was saved under.

        :param parts: tensors by part and name, as for :meth:`save`. Parts that the checkpoint has and that
            are not asked for stay unread.
        :param step: -1 takes the newest whole, good step; skipped ones are named with the reason in a
            warning each. A number takes that step, good or not.
        :param choose: which of ``parts`` to fill; all of them if not given.
        :param optional: parts to leave out, with a warning, where they do not fit this run: random-number
            states are of so many ranks.
        :param check: called with the step's manifest, on all ranks, before any tensor is read, and with the
            error that ends the loading where the tensors are not those of this run, to add to; what it raises
            ends the loading.
        :returns: ``None`` when there is no step: no folder of one, or those of saves that were interrupted.
        :raises CheckpointError: when there are step folders and none can be used, the wanted step is not
            there or not whole, or the checkpoint is of another model. What the tensors hold then is
            undefined: a step is verified while it is read.
        """
        began = time.perf_counter()

        def fill(found: OpenedStep) -> LoadedStep:
            return self._fill(parts, found, choose=choose, optional=optional, check=check, began=began)

        loaded = use_newest(self._folders, self._ranks, choose, fill, step=step)
        if loaded is not None:
            self._came_from = loaded.step
        return loaded

    def load_elsewhere(
        self,
        path: Folder,
        parts: Parts,
        *,
        choose: Choose,
        optional: Collection[str] = (),
        check: Check | None = None,
        fit: Callable[[Parts, Collection[str]], Parts] | None = None,
    ) -> LoadedStep:
        """Fill the tensors in place from a checkpoint that is not this run's; nothing there is changed.

        :param path: a step folder; a folder of steps, of which the newest whole, good one is taken; or a
            folder that another program wrote with DCP: of that the model, without checksums to verify.
        :param fit: ``fit(parts, stored)`` gives the parts to fill from a checkpoint with tensors of these
            names; it may leave tensors out and call them by other names.
        :raises CheckpointError: when there is no checkpoint, it cannot be used or does not fit.
        """
        began = time.perf_counter()

        def fill(found: OpenedStep) -> LoadedStep:
            return self._fill(
                parts, found, choose=choose, optional=optional, check=check, fit=fit, began=began
            )

        return use_elsewhere(path, self._ranks, choose, fill)

    def set_aside(self) -> None:
        """Move the steps after the one that was loaded out of the way of those that start this run again.

        :raises CheckpointError: when the disk refuses.
        """
        after = self._came_from
        cannot = f"cannot set aside the steps after step {after} in {self._folders.root}"
        on_disk(self._ranks, cannot, lambda: self._folders.set_aside(after))

    def steps(self) -> list[int]:
        """The steps that there are, whole or not, oldest first."""
        root = self._folders.root
        return on_disk(self._ranks, f"cannot read the checkpoint folder {root}", self._folders.saved)

    def _fill(
        self,
        parts: Parts,
        found: OpenedStep,
        *,
        choose: Choose | None,
        optional: Collection[str],
        check: Check | None,
        began: float,
        fit: Callable[[Parts, Collection[str]], Parts] | None = None,
    ) -> LoadedStep:
        from hekaton.checkpoint.tensors.reading import read

        manifest, folder = found.manifest, found.folder
        names = list(choose(manifest)) if choose is not None else list(parts)
        for name in names:
            if name not in parts:
                raise NotWhole(f"it holds {shown(name)}, which is no part of this run's state")
        wanted: Parts = {name: parts[name] for name in names}
        if fit is not None:
            wanted = fit(wanted, found.tensors)
        chosen, unfit = self._fitting(wanted, found, folder, optional)
        if check is not None:
            check(manifest, unfit)
        if unfit is not None:
            raise unfit
        files = manifest.files
        unverified = {name: record for name, record in files.items() if name not in found.verified}
        mine = shared_out(unverified, self._ranks.size)[self._ranks.rank]
        on_all(self._ranks, lambda: read(flat(chosen), folder, found.tensors, files, verify=mine))
        if self._ranks.is_first:
            seconds = time.perf_counter() - began
            unread = sorted(set(manifest.parts) - set(chosen))
            note = f"; not loaded: {', '.join(unread)}" if unread else ""
            log.info("loaded %s: %.3f GB in %.2f s%s", folder, manifest.size / 1e9, seconds, note)
        return LoadedStep(manifest.step, folder, manifest.info, manifest.describe, frozenset(chosen))

    def _fitting(
        self, parts: Parts, found: OpenedStep, folder: Folder, optional: Collection[str]
    ) -> tuple[Parts, DoesNotFit | None]:
        """The parts to load, and the error where they cannot be; all ranks come to the same answer."""
        manifest = found.manifest
        of_ranks = self._ranks.gather(compare(parts, found.tensors, manifest.parts))
        differences = {part: united([one[part] for one in of_ranks]) for part in parts}
        chosen = dict(parts)
        for part in optional:
            if part in chosen and differences[part].any:
                del chosen[part]
                if self._ranks.is_first:
                    log.warning(
                        "%s: '%s', saved by %d process(es), does not fit the %d of this run; not restored",
                        folder, part, manifest.processes, self._ranks.size,
                    )  # fmt: skip
        wrong = {part: differences[part] for part in chosen if differences[part].any}
        if wrong:
            models = (_model(manifest.describe), _model(self._describe))
            return chosen, DoesNotFit(folder, wrong, manifest.parts, models=models)
        converted = [dtype for part in chosen for dtype in differences[part].dtypes]
        if converted and self._ranks.is_first:
            key, there, here = converted[0]
            log.warning(
                "%s: %d tensor(s) are of another dtype and are converted (%s: %s to %s, ...)",
                folder, len(converted), key, there, here,
            )  # fmt: skip
        return chosen, None

    def _manifest(
        self,
        step: int,
        parts: Parts,
        gathered: Sequence[tuple[Mapping[str, FileRecord], Mapping[str, Any]]],
        *,
        tensors: StoredTensors,
        good: bool,
    ) -> Manifest:
        """Of what was gathered: whole on rank 0 alone."""
        files = {name: record for written, _ in gathered for name, record in written.items()}
        info: Mapping[str, Any] = {}
        for _, of_rank in gathered:
            info = _united_info(info, of_rank)
        return Manifest(
            step=step,
            good=good,
            processes=self._ranks.size,
            **written_now(),
            parts=tuple(parts),
            describe=self._describe,
            info=info,
            files=dict(sorted(files.items())),
            tensors=tensors,
        )


def _check_names(parts: Parts) -> None:
    others = [part for part in parts if part != MODEL]
    for name in parts.get(MODEL, ()):
        part = part_of(name, others)
        if part != MODEL:
            raise CheckpointError(
                f"the model has a tensor '{name}', and checkpoints keep the {part} under '{part}.'",
                hint=f"rename the model's attribute '{part}'",
            )


def _united_info(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    united = {**other, **mine}
    for key in mine.keys() & other.keys():
        if isinstance(mine[key], Mapping) and isinstance(other[key], Mapping):
            united[key] = _united_info(mine[key], other[key])
    return united


def _model(describe: Mapping[str, Any]) -> str:
    return f"{describe.get('model', 'unnamed model')} {describe.get('flavor', '')}".rstrip()
