"""The tensors of a run filled from the files of a step, which are verified in the same pass.

A file of which the checksum is due is read once, from start to end. What lies in it as it is wanted goes
straight to where it belongs, the rest through a buffer, and a second thread computes the checksum of each
piece while the next is read. Files are read and not mapped: where a disk fails, or a file is cut short
meanwhile, reading is an error, while touching a mapping ends the process.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import IO, Any

import torch

from hekaton.checkpoint.disk.folders import Folder, open_file, reason_of
from hekaton.checkpoint.disk.items import StoredValues, values_in
from hekaton.checkpoint.disk.manifest import FileRecord, NotWhole
from hekaton.checkpoint.disk.pickled import NotPlain
from hekaton.checkpoint.disk.stored import (
    NotDescribed,
    StoredChunk,
    StoredTensor,
    StoredTensors,
    dtypes,
    shown,
)
from hekaton.init import owned_indices
from hekaton.precision import in_precision
from hekaton.weights.lazy import Region

_PIECE = 1 << 22
"""Bytes that are read at once."""


@torch.no_grad()
def read(
    state: Mapping[str, torch.Tensor],
    folder: Folder,
    stored: StoredTensors,
    files: Mapping[str, FileRecord],
    *,
    verify: Collection[str],
) -> None:
    """Fill this rank's part of the tensors in place, and verify files.

    Nothing is communicated. Where it raises, the tensors hold anything.

    :param state: tensors by their keys on disk, sharded in any way; of the shapes that are stored.
    :param verify: the files of which this rank compares the checksum.
    :raises NotWhole: when a file differs from its checksum or cannot be read, or a tensor is not stored
        whole.
    """
    by_file: dict[str, list[_Wanted]] = defaultdict(list)
    gathered = _Gathered()
    for key, tensor in state.items():
        for wanted in gathered.wanted(key, tensor, stored[key]):
            by_file[wanted.chunk.file].append(wanted)
    for name in sorted({*by_file, *verify}):
        try:
            with open_file(folder / name) as file:
                same = _read_file(file, by_file[name], files[name] if name in verify else None)
        except OSError as error:
            raise NotWhole(f"{name} cannot be read: {reason_of(error)}") from error
        except (NotPlain, NotDescribed) as error:
            raise NotWhole(f"{name} {error}") from error
        if not same:
            raise NotWhole(f"{name} was changed or damaged: its checksum differs")
    gathered.spread()


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A part of a stored chunk, and where it belongs."""

    chunk: StoredChunk
    dtype: torch.dtype
    part: Region
    """Of the chunk."""
    into: torch.Tensor


class _Gathered:
    """What is wanted of each tensor. A shard in strides is no box: it is read by way of the box around it."""

    def __init__(self) -> None:
        self._owned: dict[Any, list[torch.Tensor]] = {}
        self._strided: list[tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]] = []

    def wanted(self, key: str, tensor: torch.Tensor, stored: StoredTensor) -> Iterator[_Wanted]:
        """:raises NotWhole: when not all of the tensor is stored."""
        from torch.distributed.tensor import DTensor

        if not stored.is_whole:
            raise NotWhole(f"not all of {shown(key)} is stored")
        local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
        if local.numel() == 0:
            return
        box = [slice(0, size) for size in tensor.shape]
        if isinstance(tensor, DTensor):
            owned = self._owned_by(tensor)
            box = [slice(int(mine[0]), int(mine[-1]) + 1) for mine in owned]
            sizes = [part.stop - part.start for part in box]
            if sizes != list(local.shape):
                around = local.new_empty(sizes)
                self._strided.append((local, around, [mine - mine[0] for mine in owned]))
                local = around
        yield from _pieces(box, local, stored)

    def spread(self) -> None:
        """Fill the shards in strides from the boxes around them."""
        for local, around, indices in self._strided:
            values = around
            for dim, index in enumerate(indices):
                if len(index) != values.shape[dim]:
                    values = values.index_select(dim, index.to(values.device))
            local.copy_(values)

    def _owned_by(self, tensor: Any) -> list[torch.Tensor]:
        layout = (tensor.shape, tensor.device_mesh, tensor.placements)
        if layout not in self._owned:
            self._owned[layout] = owned_indices(tensor)
        return self._owned[layout]


def _pieces(box: Sequence[slice], local: torch.Tensor, stored: StoredTensor) -> Iterator[_Wanted]:
    """The parts of the stored chunks that are in ``box``, which is ``local``."""
    dtype = dtypes()[stored.dtype]
    for chunk in stored.chunks:
        part, into = [], []
        for mine, offset, size in zip(box, chunk.offsets, chunk.sizes, strict=True):
            start, stop = max(mine.start, offset), min(mine.stop, offset + size)
            part.append(slice(start - offset, stop - offset))
            into.append(slice(start - mine.start, stop - mine.start))
        if all(one.start < one.stop for one in part):
            yield _Wanted(chunk, dtype, tuple(part), local[tuple(into)])


@dataclass(frozen=True, slots=True)
class _Straight:
    """Bytes of a file that go to where they belong as they are."""

    start: int
    memory: memoryview


def _read_file(file: IO[bytes], wanted: Sequence[_Wanted], record: FileRecord | None) -> bool:
    """Fill what is wanted of a file; whether its content is that of the record, where one is given."""
    straight, others = [], []
    for part in wanted:
        values = _values(file, part)
        start = _straight_start(part, values)
        if start is None:
            others.append((part, values))
        else:
            straight.append(_Straight(start, _bytes_of(part.into)))
    straight.sort(key=lambda one: one.start)
    in_turn, again = _apart(straight) if record is not None else ([], straight)
    same = record is None or _read_through(file, in_turn, record)
    for one in again:
        _fill(file, one.start, one.memory)
    for part, values in others:
        _copy(file, part, values)
    return same


def _apart(straight: Sequence[_Straight]) -> tuple[list[_Straight], list[_Straight]]:
    """Those that can be filled in one pass over the file, and those that need what another takes already."""
    in_turn: list[_Straight] = []
    again = []
    end = 0
    for one in straight:
        if one.start < end:
            again.append(one)
        else:
            in_turn.append(one)
            end = one.start + len(one.memory)
    return in_turn, again


def _values(file: IO[bytes], wanted: _Wanted) -> StoredValues:
    values = values_in(file, wanted.chunk.start, wanted.chunk.length)
    if values.sizes != wanted.chunk.sizes or values.dtype != wanted.dtype:
        raise NotDescribed("holds another tensor than it should")
    return values


def _straight_start(wanted: _Wanted, values: StoredValues) -> int | None:
    """Where in the file the part begins, if it lies there in one piece just as it is wanted."""
    into = wanted.into
    if not (
        values.is_plain
        and into.device.type == "cpu"
        and into.dtype == values.dtype
        and into.is_contiguous()
        and not (into.is_conj() or into.is_neg())
    ):
        return None
    rows = _rows(wanted, values)
    return rows.start if all(_is_all(part, size) for part, size in _below_first(wanted)) else None


def _below_first(wanted: _Wanted) -> list[tuple[slice, int]]:
    return list(zip(wanted.part, wanted.chunk.sizes, strict=True))[1:]


def _is_all(part: slice, size: int) -> bool:
    return (part.start, part.stop) == (0, size)


def _rows(wanted: _Wanted, values: StoredValues) -> range:
    """The bytes of the file with the rows of the chunk that are wanted of a plain tensor, all of each."""
    if not wanted.part:
        return range(values.start, values.start + values.nbytes)
    row = prod(wanted.chunk.sizes[1:]) * values.dtype.itemsize
    first = wanted.part[0]
    return range(values.start + first.start * row, values.start + first.stop * row)


def _copy(file: IO[bytes], wanted: _Wanted, values: StoredValues) -> None:
    """Fill by way of a buffer: other dtypes, devices and shapes than those in the file."""
    if values.is_plain:
        rows = _rows(wanted, values)
        memory = torch.empty(len(rows), dtype=torch.uint8)
        _fill(file, rows.start, _bytes_of(memory))
        if wanted.part:
            count = wanted.part[0].stop - wanted.part[0].start
            tensor = memory.view(values.dtype).view(count, *wanted.chunk.sizes[1:])
            tensor = tensor[(slice(None), *wanted.part[1:])]
        else:
            tensor = memory.view(values.dtype).view(())
    else:
        memory = torch.empty(values.nbytes, dtype=torch.uint8)
        _fill(file, values.start, _bytes_of(memory))
        tensor = values.of(memory)[wanted.part]
    what = f"a tensor in {wanted.chunk.file}"
    wanted.into.copy_(in_precision(tensor, wanted.into.dtype, what=what))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _fill(file: IO[bytes], start: int, memory: memoryview) -> None:
    file.seek(start)
    while memory:
        size = file.readinto(memory[:_PIECE])  # type: ignore[attr-defined]
        if not size:
            raise NotDescribed("was cut short meanwhile")
        memory = memory[size:]


def _read_through(file: IO[bytes], straight: Sequence[_Straight], record: FileRecord) -> bool:
    """Read a file from start to end and compare its checksum."""
    checksum = record.new_checksum()
    file.seek(0)
    with ThreadPoolExecutor(1) as beside:
        pending: Future[None] | None = None
        for piece in _in_order(file, straight, record.size):
            if pending is not None:
                pending.result()
            pending = beside.submit(checksum.update, piece)
    return record.has(checksum)


def _in_order(file: IO[bytes], straight: Sequence[_Straight], size: int) -> Iterator[memoryview]:
    """Read a file from start to end, each piece into memory that is left alone until the next but one."""
    buffers = [memoryview(bytearray(_PIECE)) for _ in range(2)]
    at, turn = 0, 0
    for one in [*straight, _Straight(size, memoryview(b""))]:
        while at < one.start:
            turn += 1
            piece = buffers[turn % 2][: one.start - at]
            read = file.readinto(piece)  # type: ignore[attr-defined]
            if not read:
                raise NotDescribed("was cut short meanwhile")
            yield piece[:read]
            at += read
        rest = one.memory
        while rest:
            read = file.readinto(rest[:_PIECE])  # type: ignore[attr-defined]
            if not read:
                raise NotDescribed("was cut short meanwhile")
            yield rest[:read]
            at += read
            rest = rest[read:]
