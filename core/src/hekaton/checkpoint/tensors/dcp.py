"""Tensors to a step folder, through torch.distributed.checkpoint (DCP).

Imported only when a checkpoint is written: DCP is part of no run without one.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemBase,
    FileSystemWriter,
    _StorageInfo,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from hekaton.checkpoint.disk.direct import DirectFile
from hekaton.checkpoint.disk.folders import Folder, reason_of
from hekaton.checkpoint.disk.manifest import Counted, FileRecord
from hekaton.checkpoint.disk.stored import StoredChunk, StoredTensor, StoredTensors
from hekaton.checkpoint.ranks import Ranks
from hekaton.errors import CheckpointError
from hekaton.torch_versions import NoTransforms
from hekaton.weights import LazyTensor


@dataclass(frozen=True)
class Written:
    """What a rank wrote."""

    files: dict[str, FileRecord]
    tensors: StoredTensors
    """Where the tensors of all ranks are: on rank 0, which has it from the others, and empty elsewhere."""


def write(state: Mapping[str, torch.Tensor], folder: Folder, ranks: Ranks) -> Written:
    """Write the tensors of all ranks into ``folder``; each rank writes its own shards.

    :raises CheckpointError: on all ranks, when one of them cannot write.
    """
    writer = _Writer(folder)
    with (
        _alone_quietly(ranks),
        _without_zip_checksums(),
        _named_errors(f"cannot write the checkpoint {folder}"),
    ):
        save(
            dict(state),
            storage_writer=writer,
            planner=DefaultSavePlanner(),
            process_group=ranks.group,
            no_dist=ranks.alone,
        )
    return writer.written()


def write_lazily(tensors: Mapping[str, LazyTensor], folder: Path) -> Written:
    """As :func:`write`, from this process alone, reading each tensor when it is its turn."""
    writer = _WriterInTurn(folder)
    alone = Ranks(None, 0, 1)
    shapes = {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
    }
    with (
        _alone_quietly(alone),
        _without_zip_checksums(),
        _named_errors(f"cannot write the checkpoint {folder}"),
    ):
        save(dict(shapes), storage_writer=writer, planner=_ReadInTurn(tensors), no_dist=True)
    return writer.written()


class _ReadInTurn(DefaultSavePlanner):
    """Plans with tensors on the meta device, and reads each when it is to be written."""

    def __init__(self, tensors: Mapping[str, LazyTensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        return self._tensors[write_item.index.fqn].read().contiguous()


class _Checked(io.RawIOBase):
    """A file of which the checksum is computed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._counted = Counted()
        self.record = self._counted.record

    def write(self, data: Any) -> int:
        whole = rest = memoryview(data).cast("B")
        while len(rest):
            rest = rest[self._file.write(rest) :]
        self._counted.add(whole)
        return len(whole)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._counted.size

    def fileno(self) -> int:
        self._file.flush()
        return self._file.fileno()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


class _CheckedFiles(FileSystem):
    """Writes to the disk or to a store, and keeps a record of every file."""

    def __init__(self, storage: FileSystemBase) -> None:
        self._storage = storage
        self.records: dict[str, FileRecord] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb"
        with self._storage.create_stream(path, mode) as file:
            with _Checked(cast(IO[bytes], file)) as stream:
                yield stream
            self.records[_name(path)] = stream.record()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        self._storage.rename(path, new_path)
        self.records[_name(new_path)] = self.records.pop(_name(path))

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str | os.PathLike[str]:
        return self._storage.concat_path(path, suffix)

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        self._storage.mkdir(path)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        return self._storage.exists(path)

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        self._storage.rm_file(path)


def _storage_of(folder: Folder) -> tuple[FileSystemBase, str | Path]:
    """Torch's file layer for a folder, and the folder as that layer names it."""
    if isinstance(folder, Path):
        return FileSystem(), folder
    from torch.distributed.checkpoint._fsspec_filesystem import FileSystem as FsspecFileSystem

    storage = FsspecFileSystem()
    storage.init_path(str(folder))
    return storage, str(folder)


def _name(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).rpartition("/")[2]


class _Writer(FileSystemWriter):
    def __init__(self, folder: Folder) -> None:
        storage, path = _storage_of(folder)
        # What is synced is a local disk; without one, torch syncs all disks of the host.
        super().__init__("", sync_files=isinstance(path, Path))
        self.path = path
        self.files = self.fs = _CheckedFiles(storage)
        self.transforms = cast(Any, NoTransforms())
        self._tensors: StoredTensors = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with plain_errors():
            return super().write_data(plan, planner)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        super().finish(metadata, results)
        self._tensors = _stored(metadata, results)

    def written(self) -> Written:
        return Written(self.files.records, self._tensors)

    def storage_meta(self) -> StorageMeta:
        # The name only: a folder can be moved, and where it was first is nobody's business.
        return StorageMeta(checkpoint_id=_name(self.path), save_id=self.save_id)


def _stored(metadata: Metadata, results: list[list[WriteResult]]) -> StoredTensors:
    """DCP's own account of what was written, as plain data."""
    places = {
        (one.index.fqn, tuple(one.index.offset or ())): one.storage_data for rank in results for one in rank
    }
    tensors = {}
    for name, item in metadata.state_dict_metadata.items():
        assert isinstance(item, TensorStorageMetadata)
        chunks = []
        for chunk in item.chunks:
            place = places[name, tuple(chunk.offsets)]
            where = (place.relative_path, place.offset, place.length)
            chunks.append(StoredChunk(*where, tuple(chunk.offsets), tuple(chunk.sizes)))
        dtype = str(item.properties.dtype).removeprefix("torch.")
        tensors[name] = StoredTensor(dtype, tuple(item.size), tuple(chunks))
    return tensors


class _WriterInTurn(_Writer):
    """Holds one tensor at a time, where torch's keeps those of a file until the file is written."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        file = Path(cast(Path, self.path), "__0_0.distcp")
        results = []
        stream = _Checked(cast(IO[bytes], DirectFile(file)))
        with plain_errors(), stream:
            for item in plan.items:
                start = stream.tell()
                torch.save(planner.resolve_data(item), cast(Any, stream))
                length = stream.tell() - start
                place = _StorageInfo(file.name, start, length)
                results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=place))
        self.files.records[file.name] = stream.record()
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what the disk said: torch's zip writer follows it with a complaint of its own."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        if cause is None:
            raise
        raise cause from None


@contextlib.contextmanager
def _without_zip_checksums() -> Iterator[None]:
    """Torch writes each tensor as a zip file, with a CRC-32 that nothing reads: the manifest has better."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


@contextlib.contextmanager
def _alone_quietly(ranks: Ranks) -> Iterator[None]:
    """DCP warns when it works without a process group; here that is meant."""
    if not ranks.alone:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield


@contextlib.contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Turn DCP's account of the failures of all ranks into one error that a user can read."""
    try:
        yield
    except CheckpointException as failed:
        rank, (cause, _) = min(failed.failures.items())
        if not isinstance(cause, Exception):  # an interrupt
            raise cause from failed
        said = reason_of(cause) if isinstance(cause, OSError) else str(cause)
        first_line = (said or repr(cause)).splitlines()[0]
        raise CheckpointError(f"{what}: {first_line} (rank {rank})") from cause
