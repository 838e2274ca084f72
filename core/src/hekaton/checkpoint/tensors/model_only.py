"""The model's tensors of one step folder, one at a time: read for others, or written from others."""

from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from hekaton.checkpoint.disk.folders import is_there, open_file, reason_of
from hekaton.checkpoint.disk.items import values_in
from hekaton.checkpoint.disk.manifest import (
    MANIFEST,
    METADATA,
    MODEL,
    Manifest,
    NotWhole,
    check_contents,
    check_sizes,
    stored_in,
    written_now,
)
from hekaton.checkpoint.disk.step_folders import commit_manifest, read_manifest
from hekaton.checkpoint.disk.stored import StoredChunk, StoredTensor, StoredTensors, dtypes
from hekaton.checkpoint.tensors.comparison import part_of
from hekaton.checkpoint.tensors.external import manifest_elsewhere, read_metadata_elsewhere
from hekaton.errors import CheckpointError
from hekaton.weights import LazyTensor
from hekaton.weights.lazy import Region


@dataclass(frozen=True)
class StoredModel:
    """A step folder, checked, and the model's tensors in it, none of them read yet."""

    folder: Path
    manifest: Manifest
    tensors: Mapping[str, LazyTensor]

    def verify(self) -> None:
        """Read all files through; external ones have no checksums.

        :raises CheckpointError: naming the first whose content is not as its checksum says.
        """
        files = self.manifest.files
        problem = check_contents(self.folder, files, [name for name in files if files[name].checksum])
        if problem is not None:
            raise CheckpointError(f"the checkpoint {self.folder} is damaged: {problem}")

    @contextmanager
    def verified(self) -> Iterator[None]:
        """Verify while the tensors are read: at the end, they were what was saved, or an error."""
        with ThreadPoolExecutor(1) as beside:
            checked = beside.submit(self.verify)
            yield
            checked.result()


def open_model(folder: Path) -> StoredModel:
    """Open ``folder``: a step of a run, what a conversion wrote, or what another program wrote with DCP.

    :raises CheckpointError: when it is not one, or not whole.
    """
    own = is_there(folder / MANIFEST)
    if not own and not is_there(folder / METADATA):
        raise CheckpointError(
            f"'{folder}' is not a checkpoint, or not whole: it has no {MANIFEST}", hint=_steps_in(folder)
        )
    try:
        if own:
            manifest = read_manifest(folder)
            check_sizes(folder, manifest.files)
            stored = stored_in(folder, manifest)
        else:
            manifest = dataclasses.replace(manifest_elsewhere(folder), describe={})
            stored = read_metadata_elsewhere(folder, manifest.files)
    except NotWhole as reason:
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {reason}") from reason
    return StoredModel(folder, manifest, _model_tensors(folder, stored, manifest))


def write_model(folder: Path, tensors: Mapping[str, LazyTensor], *, describe: Mapping[str, Any]) -> None:
    """Write a checkpoint of step 0 that holds a model only, into an empty folder.

    :param describe: as for :class:`hekaton.checkpoint.CheckpointManager`.
    :raises CheckpointError: when it cannot be written.
    """
    from hekaton.checkpoint.tensors import dcp

    written = dcp.write_lazily(tensors, folder)
    manifest = Manifest(
        step=0,
        good=True,
        processes=1,
        **written_now(),
        parts=(MODEL,),
        describe=describe,
        info={},
        files=dict(sorted(written.files.items())),
        tensors=written.tensors,
    )
    commit_manifest(folder, manifest)


def _model_tensors(folder: Path, stored: StoredTensors, manifest: Manifest) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor(
            tensor.shape,
            dtypes()[tensor.dtype],
            lambda region, name=name, tensor=tensor: _read(folder, name, tensor, region),  # type: ignore[misc]
        )
        for name, tensor in stored.items()
        if part_of(name, manifest.parts) == MODEL
    }


def _read(folder: Path, name: str, stored: StoredTensor, region: Region) -> torch.Tensor:
    """A box of a tensor, out of the chunks in which it is stored."""
    sizes = [part.stop - part.start for part in region]
    values: torch.Tensor | None = None
    filled = 0
    for chunk in stored.chunks:
        start = [max(part.start, offset) for part, offset in zip(region, chunk.offsets, strict=True)]
        stop = [
            min(part.stop, offset + size)
            for part, offset, size in zip(region, chunk.offsets, chunk.sizes, strict=True)
        ]
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            continue
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, chunk.offsets, strict=True))
        piece = _mapped(folder, name, chunk, dtypes()[stored.dtype])[inside]
        if list(piece.shape) == sizes:
            return piece
        if values is None:
            values = torch.empty(sizes, dtype=piece.dtype, device="cpu")
        into = tuple(
            slice(a - part.start, b - part.start) for a, b, part in zip(start, stop, region, strict=True)
        )
        values[into] = piece
        filled += prod(b - a for a, b in zip(start, stop, strict=True))
    if filled != prod(sizes):
        raise CheckpointError(f"{folder}: '{name}' is not stored whole")
    return torch.empty(sizes, dtype=dtypes()[stored.dtype]) if values is None else values


def _mapped(folder: Path, name: str, chunk: StoredChunk, dtype: torch.dtype) -> torch.Tensor:
    """A chunk, whose memory is that of the file and is read as it is touched."""
    file = folder / chunk.file
    try:
        with open_file(file) as stream:
            values = values_in(stream, chunk.start, chunk.length)
            if values.sizes != chunk.sizes or values.dtype != dtype:
                raise CheckpointError(f"{folder}: '{name}' is not stored as it is described")
            before = values.start % mmap.ALLOCATIONGRANULARITY
            memory = mmap.mmap(
                stream.fileno(), before + values.nbytes, access=mmap.ACCESS_COPY, offset=values.start - before
            )
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {reason_of(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"cannot read {file}: it {error}") from error
    return values.of(torch.frombuffer(memory, dtype=torch.uint8, count=values.nbytes, offset=before))


def _steps_in(folder: Path) -> str:
    steps = sorted(entry.parent.name for entry in folder.glob(f"step-*/{MANIFEST}"))
    return f"give one of its steps: {', '.join(steps)}" if steps else ""
