"""Which step to load: found by all ranks together, and used by all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from hekaton.checkpoint.disk.folders import Folder, reason_of
from hekaton.checkpoint.disk.manifest import (
    MANIFEST,
    METADATA,
    Manifest,
    NotWhole,
    Unfinished,
    check_contents,
    check_step,
    stored_in,
)
from hekaton.checkpoint.disk.step_folders import StepFolders, read_manifest
from hekaton.checkpoint.disk.stored import StoredTensors
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.tensors.external import kind_of, manifest_elsewhere, read_metadata_elsewhere
from hekaton.errors import CheckpointError

log = logging.getLogger("hekaton")

T = TypeVar("T")


@dataclass(frozen=True)
class OpenedStep:
    """A step whose files are there, and what is in them."""

    folder: Folder
    manifest: Manifest
    tensors: StoredTensors
    verified: frozenset[str] = frozenset()
    """Files that were compared with their checksums already, or have none."""


Choose: TypeAlias = Callable[[Manifest], Collection[str]]
"""Which parts to fill from a step; raises NotWhole to skip it. Called on all ranks."""
Use: TypeAlias = Callable[[OpenedStep], T]
"""Reads a step; raises NotWhole, on all ranks, to skip it."""


def use_newest(
    folders: StepFolders, ranks: Ranks, choose: Choose | None, use: Use[T], *, step: int = -1
) -> T | None:
    """Use the newest step that is good and proves whole, or the one of a number; the same on all ranks.

    :returns: what ``use`` returned; ``None`` when there is no step: no folder of one, or those of saves that
        were interrupted.
    :raises CheckpointError: on all ranks, when there are some and none can be used, or not the wanted one.
    """
    root = folders.root
    steps = on_disk(ranks, f"cannot read the checkpoint folder {root}", folders.found)
    if step >= 0:
        return _wanted(root, steps, step, ranks, choose, use)
    return _newest(root, steps, ranks, choose, use, cure="to start from step 0, move that folder away")


def use_elsewhere(path: Folder, ranks: Ranks, choose: Choose, use: Use[T]) -> T:
    """Use the checkpoint at a path: a step folder, a folder of steps, or an external folder.

    :raises CheckpointError: on all ranks, when there is none or it cannot be used.
    """
    cannot = f"cannot read the checkpoint {path}"
    kind = on_disk(ranks, cannot, lambda: kind_of(path))
    if kind == "steps":
        used = _newest(path, on_disk(ranks, cannot, StepFolders(path).found), ranks, choose, use)
        if used is None:
            raise CheckpointError(f"{cannot}: no save has completed there yet")
        return used
    try:
        return use(_opened(path, ranks, choose) if kind == "step" else _opened_bare(path, ranks, choose))
    except NotWhole as reason:
        raise CheckpointError(f"the checkpoint {path} cannot be loaded: {reason}") from reason


def on_disk(ranks: Ranks, what: str, action: Callable[[], T]) -> T:
    """Let rank 0 work on the folders; what the disk refuses is a CheckpointError on all ranks."""

    def told() -> T:
        try:
            return action()
        except OSError as error:
            raise CheckpointError(f"{what}: {reason_of(error)}") from error

    return ranks.first(told)


def _wanted(
    root: Folder, steps: Mapping[int, Folder], wanted: int, ranks: Ranks, choose: Choose | None, use: Use[T]
) -> T:
    if wanted not in steps:
        raise CheckpointError(f"there is no checkpoint step-{wanted} in {root}", hint=_available(list(steps)))
    try:
        return use(_opened(steps[wanted], ranks, choose, step=wanted))
    except NotWhole as reason:
        others = [step for step in steps if step != wanted]
        raise CheckpointError(
            f"checkpoint step-{wanted} in {root} cannot be loaded: {reason}", hint=_available(others)
        ) from reason


def _newest(
    root: Folder,
    steps: Mapping[int, Folder],
    ranks: Ranks,
    choose: Choose | None,
    use: Use[T],
    *,
    cure: str = "",
) -> T | None:
    broken = []
    for number, folder in reversed(list(steps.items())):
        try:
            return use(_opened(folder, ranks, choose, step=number, good=True))
        except NotWhole as reason:
            if not isinstance(reason, Unfinished):
                broken.append(f"step-{number}: {reason}")
            if ranks.is_first:
                log.warning("skipping checkpoint step-%d in %s: %s", number, root, reason)
    if broken:
        raise CheckpointError(
            f"none of the checkpoints in {root} can be loaded", hint="\n".join([*broken, cure])
        )
    if steps and ranks.is_first:
        log.warning("%s: no save has completed there yet: there is no step to resume from", root)
    return None


def _opened(
    folder: Folder, ranks: Ranks, choose: Choose | None, *, step: int | None = None, good: bool = False
) -> OpenedStep:
    """Read a step through.

    :param step: the number that it must have.
    :param good: whether it must be good.
    :raises NotWhole: on all ranks, when it is not to be used, or not as its manifest says.
    """

    def looked_at() -> Manifest | NotWhole:
        try:
            manifest = read_manifest(folder)
            check_step(folder, manifest, step)
            if good and not manifest.good:
                raise NotWhole("its loss or its weights were not finite")
            if choose is not None:
                choose(manifest)
        except NotWhole as reason:
            return reason
        return manifest

    manifest = on_disk(ranks, f"cannot read the checkpoint {folder}", looked_at)
    if isinstance(manifest, NotWhole):
        raise manifest
    files = manifest.files
    # Few bytes, and what they say must not be a consequence of damage.
    damage = on_all(ranks, lambda: check_contents(folder, files, [METADATA]))
    if damage is not None:
        raise NotWhole(damage)
    return OpenedStep(
        folder, manifest, on_all(ranks, lambda: stored_in(folder, manifest)), frozenset({METADATA})
    )


def _opened_bare(folder: Folder, ranks: Ranks, choose: Choose) -> OpenedStep:
    """Read what there is of a step that has no manifest; raises as :func:`_opened`."""
    manifest = on_disk(ranks, f"cannot read the checkpoint {folder}", lambda: manifest_elsewhere(folder))
    choose(manifest)
    tensors = on_all(ranks, lambda: read_metadata_elsewhere(folder, manifest.files))
    if ranks.is_first:
        log.info("notice: %s has no %s: there are no checksums to verify its files with", folder, MANIFEST)
    return OpenedStep(folder, manifest, tensors, frozenset(manifest.files))


def on_all(ranks: Ranks, action: Callable[[], T]) -> T:
    """Let every rank do it; :raises NotWhole: on all of them, when one does."""

    def told() -> T | NotWhole:
        try:
            return action()
        except NotWhole as reason:
            return reason

    done = ranks.each(told)
    for problem in ranks.gather(str(done) if isinstance(done, NotWhole) else None):
        if problem is not None:
            raise NotWhole(problem)
    assert not isinstance(done, NotWhole)
    return done


def _available(steps: Sequence[int]) -> str:
    return f"available: {', '.join(map(str, steps))}" if steps else "there is no other"
