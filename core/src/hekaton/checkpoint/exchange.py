"""The model's tensors of one step folder, one at a time: read for others, or written from others."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import hekaton
from hekaton.checkpoint.elsewhere import manifest_elsewhere, read_metadata_elsewhere
from hekaton.checkpoint.integrity import (
    MANIFEST,
    METADATA,
    MODEL,
    Manifest,
    NotWhole,
    check_contents,
    check_sizes,
    read_metadata,
)
from hekaton.checkpoint.matching import part_of
from hekaton.checkpoint.storage import commit_manifest, read_manifest
from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.lazy import Region

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata


@dataclass(frozen=True)
class StoredModel:
    """A step folder, checked, and the model's tensors in it, none of them read yet."""

    folder: Path
    manifest: Manifest
    tensors: Mapping[str, LazyTensor]

    def verify(self) -> None:
        """Read all files through; those of another program have no checksums.

        :raises CheckpointError: naming the first whose content is not as its checksum says.
        """
        files = self.manifest.files
        problem = check_contents(self.folder, files, [name for name in files if files[name].checksum])
        if problem is not None:
            raise CheckpointError(f"the checkpoint {self.folder} is damaged: {problem}")


def open_model(folder: Path) -> StoredModel:
    """Open ``folder``: a step of a run, what a conversion wrote, or what another program wrote with DCP.

    :raises CheckpointError: when it is not one, or not whole.
    """
    own = (folder / MANIFEST).is_file()
    if not own and not (folder / METADATA).is_file():
        raise CheckpointError(
            f"'{folder}' is not a checkpoint, or not whole: it has no {MANIFEST}", hint=_steps_in(folder)
        )
    try:
        if own:
            manifest = read_manifest(folder)
            check_sizes(folder, manifest.files)
            metadata = read_metadata(folder, manifest.files)
        else:
            manifest = dataclasses.replace(manifest_elsewhere(folder), describe={})
            metadata = read_metadata_elsewhere(folder, manifest.files)
    except NotWhole as reason:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {reason}") from reason
    return StoredModel(folder, manifest, _model_tensors(folder, metadata, manifest))


def write_model(folder: Path, tensors: Mapping[str, LazyTensor], *, describe: Mapping[str, Any]) -> None:
    """Write a checkpoint of step 0 that holds a model only, into an empty folder.

    :param describe: as for :class:`hekaton.checkpoint.CheckpointManager`.
    :raises CheckpointError: when it cannot be written.
    """
    from hekaton.checkpoint import dcp

    files = dcp.write_lazily(tensors, folder)
    manifest = Manifest(
        step=0,
        good=True,
        saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
        processes=1,
        versions={
            "hekaton": hekaton.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        parts=(MODEL,),
        describe=describe,
        info={},
        files=dict(sorted(files.items())),
    )
    commit_manifest(folder, manifest)


def _model_tensors(folder: Path, metadata: Metadata, manifest: Manifest) -> dict[str, LazyTensor]:
    items = cast("dict[str, TensorStorageMetadata]", metadata.state_dict_metadata)
    chunks = _Chunks(folder, metadata)
    return {
        name: LazyTensor(
            tuple(item.size),
            item.properties.dtype,
            lambda region, name=name, item=item: chunks.read(name, item, region),  # type: ignore[misc]
        )
        for name, item in items.items()
        if part_of(name, manifest.parts) == MODEL
    }


class _Chunks:
    """The pieces in which tensors are stored."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self._folder = folder
        self._places = {
            (index.fqn, tuple(index.offset or ())): place
            for index, place in (metadata.storage_data or {}).items()
        }

    def read(self, name: str, item: TensorStorageMetadata, region: Region) -> torch.Tensor:
        sizes = [part.stop - part.start for part in region]
        values: torch.Tensor | None = None
        filled = 0
        for chunk in item.chunks:
            start = [max(part.start, offset) for part, offset in zip(region, chunk.offsets, strict=True)]
            stop = [
                min(part.stop, offset + size)
                for part, offset, size in zip(region, chunk.offsets, chunk.sizes, strict=True)
            ]
            if any(a >= b for a, b in zip(start, stop, strict=True)):
                continue
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, chunk.offsets, strict=True))
            piece = self._chunk(name, item, tuple(chunk.offsets), tuple(chunk.sizes))[inside]
            if list(piece.shape) == sizes:
                return piece
            if values is None:
                values = torch.empty(sizes, dtype=item.properties.dtype, device="cpu")
            into = tuple(
                slice(a - part.start, b - part.start) for a, b, part in zip(start, stop, region, strict=True)
            )
            values[into] = piece
            filled += prod(b - a for a, b in zip(start, stop, strict=True))
        if values is None or filled != prod(sizes):
            raise CheckpointError(f"{self._folder}: '{name}' is not stored whole")
        return values

    def _chunk(
        self, name: str, item: TensorStorageMetadata, offsets: tuple[int, ...], sizes: tuple[int, ...]
    ) -> torch.Tensor:
        place = self._places.get((name, offsets))
        if place is None:
            raise CheckpointError(f"{self._folder}: '{name}' is not stored whole")
        from hekaton.checkpoint import dcp

        tensor = dcp.read_item(self._folder / place.relative_path, place.offset, place.length)
        if tensor.shape != torch.Size(sizes) or tensor.dtype != item.properties.dtype:
            raise CheckpointError(f"{self._folder}: '{name}' is not stored as {METADATA} says")
        return tensor


def _steps_in(folder: Path) -> str:
    steps = sorted(entry.parent.name for entry in folder.glob(f"step-*/{MANIFEST}"))
    return f"give one of its steps: {', '.join(steps)}" if steps else ""
