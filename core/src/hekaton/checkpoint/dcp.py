"""Tensors to and from a step folder, through torch.distributed.checkpoint (DCP).

Imported only when a checkpoint is written or read: DCP is part of no run without one.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    FileSystem,
    FileSystemBase,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from hekaton.checkpoint.folders import Folder, words_of
from hekaton.checkpoint.integrity import Counted, FileRecord
from hekaton.checkpoint.ranks import Ranks
from hekaton.errors import CheckpointError

Tensors = dict[str, torch.Tensor]


def write(state: Mapping[str, torch.Tensor], folder: Folder, ranks: Ranks) -> dict[str, FileRecord]:
    """Write the tensors of all ranks into ``folder``; each rank writes its own shards.

    :returns: the files that this rank wrote.
    :raises CheckpointError: on all ranks, when one of them cannot write.
    """
    writer = _Writer(folder)
    with _alone_quietly(ranks), _without_zip_checksums(), _told(f"cannot write the checkpoint {folder}"):
        save(
            dict(state),
            storage_writer=writer,
            planner=DefaultSavePlanner(),
            process_group=ranks.group,
            no_dist=ranks.alone,
        )
    return writer.files.records


def read(state: Mapping[str, torch.Tensor], folder: Folder, metadata: Metadata, ranks: Ranks) -> None:
    """Fill the tensors in place; each rank reads what its shards need.

    :param metadata: as read and checked by :func:`hekaton.checkpoint.integrity.read_metadata`.
    :raises CheckpointError: on all ranks, when one of them cannot read.
    """
    with _alone_quietly(ranks), _told(f"cannot read the checkpoint {folder}"):
        load(
            dict(state),
            storage_reader=_Reader(folder, metadata),
            planner=_TensorsOnly(),
            process_group=ranks.group,
            no_dist=ranks.alone,
        )


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

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with _plain_errors():
            return super().write_data(plan, planner)

    def storage_meta(self) -> StorageMeta:
        # The name only: a folder can be moved, and where it was first is nobody's business.
        return StorageMeta(checkpoint_id=_name(self.path), save_id=self.save_id)


class _Reader(FileSystemReader):
    """Reads with metadata that has been vetted, instead of unpickling the file itself."""

    def __init__(self, folder: Folder, metadata: Metadata) -> None:
        super().__init__("")
        storage, self.path = _storage_of(folder)
        self.fs = cast(FileSystem, storage)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"'{read_item.dest_index.fqn}' is not a tensor: refused, it could hold code")


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
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
def _told(what: str) -> Iterator[None]:
    """Turn DCP's account of the failures of all ranks into one error that a user can read."""
    try:
        yield
    except CheckpointException as failed:
        rank, (cause, _) = min(failed.failures.items())
        if not isinstance(cause, Exception):  # an interrupt
            raise cause from failed
        said = words_of(cause) if isinstance(cause, OSError) else str(cause)
        first_line = (said or repr(cause)).splitlines()[0]
        raise CheckpointError(f"{what}: {first_line} (rank {rank})") from cause
