"""Tensors to and from a step folder, through torch.distributed.checkpoint (DCP).

Imported only when a checkpoint is written or read: DCP is part of no run without one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from hekaton.checkpoint.integrity import FileRecord
from hekaton.checkpoint.ranks import Ranks
from hekaton.errors import CheckpointError

Tensors = dict[str, torch.Tensor]
_PIECE = 1 << 23


def write(state: Mapping[str, torch.Tensor], folder: Path, ranks: Ranks) -> dict[str, FileRecord]:
    """Write the tensors of all ranks into ``folder``; each rank writes its own shards.

    :returns: the files that this rank wrote.
    :raises CheckpointError: on all ranks, when one of them cannot write.
    """
    writer = _Writer(folder)
    with _alone_quietly(ranks), _told(f"cannot write the checkpoint {folder}"):
        save(
            dict(state),
            storage_writer=writer,
            planner=DefaultSavePlanner(),
            process_group=ranks.group,
            no_dist=ranks.size == 1,
        )
    return writer.files.records


def read(state: Mapping[str, torch.Tensor], folder: Path, metadata: Metadata, ranks: Ranks) -> None:
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
            no_dist=ranks.size == 1,
        )


class _Hashed(io.RawIOBase):
    """A file whose SHA-256 is computed while it is written and synced.

    ``thread`` reads behind the writer, from the page cache: what is passed to :meth:`write` is torch's memory
    and valid only during the call.
    """

    def __init__(self, path: Path, thread: ThreadPoolExecutor) -> None:
        self._file = path.open("w+b", buffering=0)
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._handed_over = 0
        self._hashed = 0

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        written = 0
        while written < len(piece):
            written += self._file.write(piece[written:])
        self._size += len(piece)
        if self._size - self._handed_over >= _PIECE:
            self._thread.submit(self._hash_to, self._size)
            self._handed_over = self._size
        return len(piece)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._thread.submit(self._hash_to, self._size).result()
        finally:
            self._file.close()
            super().close()

    def record(self) -> FileRecord:
        """The size and checksum of what was written, once it is closed."""
        assert self.closed
        return FileRecord(self._size, self._sha256.hexdigest())

    def _hash_to(self, end: int) -> None:
        while self._hashed < end:
            piece = os.pread(self.fileno(), min(_PIECE, end - self._hashed), self._hashed)
            if not piece:
                raise OSError(errno.EIO, "the file was cut short while it was written")
            self._sha256.update(piece)
            self._hashed += len(piece)


class _HashedFiles(FileSystem):
    """The local file system, with a record of every file that was written through it."""

    def __init__(self) -> None:
        self.records: dict[str, FileRecord] = {}

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
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
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        assert mode == "wb"
        with ThreadPoolExecutor(1) as thread, _Hashed(Path(path), thread) as stream:
            yield stream
        self.records[Path(path).name] = stream.record()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.records[Path(new_path).name] = self.records.pop(Path(path).name)


class _Writer(FileSystemWriter):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = self.fs = _HashedFiles()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with self.files.plain_errors():
            return super().write_data(plan, planner)

    def storage_meta(self) -> StorageMeta:
        # The name only: a folder can be moved, and where it was first is nobody's business.
        return StorageMeta(checkpoint_id=cast(Path, self.path).name, save_id=self.save_id)


class _Reader(FileSystemReader):
    """Reads with metadata that has been vetted, instead of unpickling the file itself."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"'{read_item.dest_index.fqn}' is not a tensor: refused, it could hold code")


@contextlib.contextmanager
def _alone_quietly(ranks: Ranks) -> Iterator[None]:
    """DCP warns when it works in one process; here that is meant."""
    if ranks.size > 1:
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
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        first_line = (reason or repr(cause)).splitlines()[0]
        raise CheckpointError(f"{what}: {first_line} (rank {rank})") from cause
