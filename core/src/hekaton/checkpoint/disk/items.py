"""One item of a ``.distcp`` file: what ``torch.save`` wrote of one tensor, and where its values lie in it.

torch's own reader is not asked: it unpickles. The pickle in an item names one tensor over one storage, and is
read as plain data.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from dataclasses import dataclass
from typing import IO, Any

import torch

from hekaton.checkpoint.disk.pickled import Call, Name, NotPlain, Reference, Table, Vocabulary, read_pickle
from hekaton.checkpoint.disk.stored import NotDescribed, dtypes, integer

_LARGEST_READ = 1 << 20
"""Bytes that are read at once of all that is not values."""
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
}
_UNTYPED = "torch.storage.UntypedStorage"


@dataclass(frozen=True, slots=True)
class StoredValues:
    """The values of a tensor in a file."""

    start: int
    """Where the first byte that it uses lies in the file."""
    nbytes: int
    """How many bytes there are up to the last that it uses."""
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the values lie there as they are, in order."""
        expected = 1
        for size, stride in reversed(list(zip(self.sizes, self.strides, strict=True))):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return not (self.conjugate or self.negative)

    def of(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor over ``memory``: the ``nbytes`` at ``start``, as uint8."""
        if not memory.numel():
            return torch.empty(self.sizes, dtype=self.dtype)
        tensor = memory.view(self.dtype).as_strided(self.sizes, self.strides)
        tensor = tensor.conj() if self.conjugate else tensor
        return torch._neg_view(tensor) if self.negative else tensor


def values_in(file: IO[bytes], start: int, length: int) -> StoredValues:
    """Find the values of the item at ``start``.

    :raises NotPlain: when it asks for anything else than one tensor.
    :raises NotDescribed: when it is broken.
    :raises OSError: when the file cannot be read.
    """
    view = _Slice(file, start, length)
    try:
        with zipfile.ZipFile(view) as records:
            entries = {entry.filename.partition("/")[2]: entry for entry in records.infolist()}
        order = _content(view, entries["byteorder"]) if "byteorder" in entries else b"little"
        if order != sys.byteorder.encode():
            raise NotDescribed("holds a tensor of another byte order")
        described = read_pickle(_content(view, entries["data.pkl"]), _VOCABULARY)
        data = entries["data/0"]
        where = start + _place(view, data)
    except KeyError as error:
        raise NotDescribed("does not hold a tensor where one should be") from error
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError) as error:
        if isinstance(error, NotPlain | NotDescribed):
            raise
        raise NotDescribed(f"does not hold a tensor where one should be: {error}") from error
    return _values(described, where, data.file_size)


class _Slice(io.RawIOBase):
    """A part of a file, read in small pieces only."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._at = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._length)[whence]
        if not 0 <= at <= self._length:
            raise ValueError("it is cut short")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        left = self._length - self._at
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_READ:
            raise ValueError(f"a part of {wanted:,} bytes that is not values")
        self._file.seek(self._start + self._at)
        data = self._file.read(wanted)
        self._at += len(data)
        return data


def _place(view: _Slice, entry: zipfile.ZipInfo) -> int:
    """Where the content of a record begins in the item."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise NotDescribed("holds a compressed tensor")
    view.seek(entry.header_offset)
    magic, name, extra = _LOCAL_HEADER.unpack(view.read(_LOCAL_HEADER.size))
    place: int = entry.header_offset + _LOCAL_HEADER.size + name + extra
    if magic != b"PK\x03\x04":
        raise NotDescribed("does not hold a tensor where one should be")
    view.seek(place + entry.file_size)  # raises where that is beyond the item
    return place


def _content(view: _Slice, entry: zipfile.ZipInfo) -> bytes:
    view.seek(_place(view, entry))
    return view.read(entry.file_size)


def _is_rebuild(given: tuple[Any, ...]) -> bool:
    return 6 <= len(given) <= 8 and isinstance(given[0], Reference)


_VOCABULARY = Vocabulary(
    functions={
        **dict.fromkeys(_REBUILD, _is_rebuild),
        "collections.OrderedDict": lambda given: given == (),
    },
    constants=frozenset({*_STORAGES, _UNTYPED, *(f"torch.{name}" for name in dtypes())}),
    references=True,
)


def _values(described: Any, where: int, stored: int) -> StoredValues:
    """:param where: of the record ``data/0`` in the file; :param stored: its bytes."""
    if not isinstance(described, Call) or described.function not in _REBUILD:
        raise NotDescribed("does not hold a tensor where one should be")
    reference, offset, sizes, strides, _, hooks, *rest = described.arguments
    to = reference.to
    if not (
        isinstance(to, tuple)
        and len(to) == 5
        and isinstance(to[1], Name)
        and to[2] == "0"
        and isinstance(sizes, tuple)
        and isinstance(strides, tuple)
        and len(sizes) == len(strides)
        and isinstance(hooks, Call)
    ):
        raise NotDescribed("does not hold a tensor where one should be")
    dtype = _STORAGES.get(to[1].path)
    if described.function.endswith("_v3"):
        named = rest.pop(0) if rest else None
        dtype = dtypes().get(named.path.removeprefix("torch.")) if isinstance(named, Name) else None
    if dtype is None or len(rest) > 1:
        raise NotDescribed("does not hold a tensor where one should be")
    marks = _marks(rest[0]) if rest else {}
    sizes = tuple(integer("a tensor", size) for size in sizes)
    strides = tuple(integer("a tensor", stride) for stride in strides)
    first = integer("a tensor", offset) * dtype.itemsize
    used = 0
    if 0 not in sizes:
        used = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if used and first + used * dtype.itemsize > stored:
        raise NotDescribed("holds a tensor that is cut short")
    return StoredValues(where + first, used * dtype.itemsize, dtype, sizes, strides, **marks)


def _marks(metadata: Any) -> dict[str, bool]:
    """What ``torch.save`` notes of views that conjugate or negate: the values stored are those before it."""
    names = {"conj": "conjugate", "neg": "negative"}
    if metadata is None:
        return {}
    if not isinstance(metadata, Table):
        raise NotDescribed("does not hold a tensor where one should be")
    marks = {}
    for key, value in metadata.pairs:
        if not (isinstance(key, str) and key in names and isinstance(value, bool)):
            raise NotDescribed("holds a tensor with unknown flags")
        marks[names[key]] = value
    return marks
