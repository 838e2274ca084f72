"""Checkpoints outside of the run's own folder: what kind they are, and external ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from hekaton.checkpoint.disk.folders import Folder, files_in, is_there
from hekaton.checkpoint.disk.manifest import (
    MANIFEST,
    METADATA,
    MODEL,
    FileRecord,
    Manifest,
    check_within_files,
    read_metadata,
)
from hekaton.checkpoint.disk.step_folders import StepFolders
from hekaton.checkpoint.disk.stored import StoredTensors
from hekaton.checkpoint.tensors.comparison import part_of
from hekaton.errors import CheckpointError

Kind: TypeAlias = Literal["steps", "step", "external"]

# What torchtitan and torch's own examples keep beside the model, each under its name and a dot.
_PARTS_ELSEWHERE = ("optimizer", "lr_scheduler", "dataloader", "train_state")


def kind_of(path: Folder) -> Kind:
    """:raises CheckpointError: when there is no checkpoint at ``path``."""
    if is_there(path / MANIFEST):
        return "step"
    if is_there(path / METADATA):
        return "external"
    if StepFolders(path).steps():
        return "steps"
    if not is_there(path):
        raise CheckpointError(f"there is no checkpoint folder '{path}'")
    raise CheckpointError(
        f"'{path}' is not a checkpoint",
        hint=f"expected a folder step-N with {METADATA}, or a folder that holds such",
    )


def manifest_elsewhere(folder: Folder) -> Manifest:
    """What can be said of a folder that another program wrote: its files and their sizes."""
    files = {name: FileRecord(size, "") for name, size in files_in(folder).items()}
    return Manifest(
        step=0,
        good=True,
        saved_at="",
        processes=0,
        versions={},
        parts=(MODEL,),
        describe={"model": "external"},
        info={},
        files=files,
    )


def read_metadata_elsewhere(folder: Folder, files: Mapping[str, FileRecord]) -> StoredTensors:
    """Which tensor of the model is where; what else the folder holds is left out.

    :raises NotWhole: when it cannot be read, asks for code, or a file is shorter than it says.
    """
    tensors = {
        name: tensor
        for name, tensor in read_metadata(folder, files, leave_out_others=True).items()
        if part_of(name, _PARTS_ELSEWHERE) == MODEL
    }
    return check_within_files(METADATA, tensors, files)
