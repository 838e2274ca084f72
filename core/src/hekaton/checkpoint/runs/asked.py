"""What a run asks of its checkpoints, and what one without checkpoints answers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hekaton.checkpoint.disk.folders import folder_at
from hekaton.checkpoint.disk.lock import FolderLock
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs.selection import on_disk

if TYPE_CHECKING:
    from hekaton.config import JobConfig

log = logging.getLogger("hekaton")


class Checkpoints(Protocol):
    """What a run asks of its checkpoints, whether it has some or not."""

    def resume(self) -> int:
        """Restore the state from where the run left off. :returns: the steps that are done."""

    def go_back(self, before: int, *, why: str) -> tuple[int, torch.Tensor]:
        """Restore everything but the data's position from the last good step before step ``before``.

        :param why: for an error; :returns: that step, and the position of every row of the global batch then.
        :raises CheckpointError: where there is none.
        """

    def poll(self) -> None:
        """Called before every step: finish a save that was written meanwhile, or raise its error."""

    def due(self, step: int) -> bool:
        """Whether the step just done is to be saved."""

    def save(self, step: int, *, good: bool) -> None:
        """Save the step just done. :param good: whether its loss and gradients are finite."""

    def save_seed(self) -> None:
        """Save the initial weights as step 0."""

    def end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Called when the run ends, with the error that ended it early, if one did."""

    def close(self) -> None:
        """Release the lock of the folder."""


class NoCheckpoints:
    """A run without checkpoints: nothing is ever due, and every run starts at step 0."""

    def __init__(self, config: JobConfig) -> None:
        """:raises CheckpointError: when another run saves in the folder: this one would write its
        configuration and metrics over those of that one."""
        folder = folder_at(config.checkpoint.folder, within=config.job.dump_folder)
        if isinstance(folder, Path):  # a store need not be reachable where nothing is saved
            on_disk(Ranks.of(), f"cannot read the checkpoint folder {folder}", FolderLock(folder).check_free)

    def resume(self) -> int:
        return 0

    def go_back(self, before: int, *, why: str) -> tuple[int, torch.Tensor]:
        raise AssertionError("a run without checkpoints was to go back")  # a rule

    def poll(self) -> None:
        pass

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, *, good: bool) -> None:
        log.warning("step %d is not saved: checkpoint.enable is false", step)

    def save_seed(self) -> None:
        raise AssertionError("a run without checkpoints was saved")  # a rule

    def end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        pass

    def close(self) -> None:
        pass
