"""Where the tensors of a step lie, as plain data: from its manifest, or from DCP's ``.metadata``."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch

_MAX_DIMS = 64  # torch's own limit
_MAX_INTEGER = 2**63 - 1
_MAX_NAME = 4096
_SHOWN = 200


class NotDescribed(ValueError):
    """What should describe a tensor does not; the message follows the name of the file that it stands in."""


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A box of a tensor, and the item of a ``.distcp`` file that holds it."""

    file: str
    start: int
    """Where the item begins in the file, in bytes."""
    length: int
    """Of the item, in bytes."""
    offsets: tuple[int, ...]
    """Of the box in the tensor."""
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a step: what it is, and the boxes in which it is stored."""

    dtype: str
    """As ``float32``."""
    shape: tuple[int, ...]
    chunks: tuple[StoredChunk, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the boxes are as many values as the tensor has."""
        places = {chunk.offsets: prod(chunk.sizes) for chunk in self.chunks if prod(chunk.sizes)}
        return sum(places.values()) == prod(self.shape)


StoredTensors: TypeAlias = Mapping[str, StoredTensor]
"""Tensors by their keys on disk."""


def to_json(tensors: StoredTensors) -> str:
    """One line for each tensor; a chunk is the list of its file, start, length, offsets and sizes."""
    lines = []
    for name, tensor in tensors.items():
        chunks = [[one.file, one.start, one.length, one.offsets, one.sizes] for one in tensor.chunks]
        entry = {"dtype": tensor.dtype, "shape": tensor.shape, "chunks": chunks}
        lines.append(f"{json.dumps(name)}: {json.dumps(entry)}")
    return "{\n  " + ",\n  ".join(lines) + "\n }"


def from_json(content: Any) -> dict[str, StoredTensor]:
    """:raises NotDescribed: when it is not what :func:`to_json` writes."""
    if not isinstance(content, dict):
        raise NotDescribed("does not list its tensors")
    tensors = {}
    for name, entry in content.items():
        if not (isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "chunks"}):
            raise NotDescribed(not_a_tensor(name))
        chunks = entry["chunks"]
        if not (isinstance(chunks, list) and all(isinstance(one, list) and len(one) == 5 for one in chunks)):
            raise NotDescribed(not_a_tensor(name))
        tensors[name] = stored_tensor(name, entry["dtype"], entry["shape"], chunks)
    return tensors


def stored_tensor(name: Any, dtype: Any, shape: Any, chunks: Collection[Any]) -> StoredTensor:
    """A tensor from values of any type, each of them checked.

    :param chunks: sequences of five: file, start, length, offsets and sizes.
    :raises NotDescribed: when they do not describe a tensor.
    """
    if not (isinstance(name, str) and len(name) <= _MAX_NAME and isinstance(dtype, str)):
        raise NotDescribed(not_a_tensor(name))
    size = _sizes(name, shape)
    boxes = []
    for file, start, length, offsets, sizes in chunks:
        if not isinstance(file, str):
            raise NotDescribed(not_a_tensor(name))
        box = StoredChunk(
            file, integer(name, start), integer(name, length), _sizes(name, offsets), _sizes(name, sizes)
        )
        inside = len(box.offsets) == len(box.sizes) == len(size) and all(
            offset + extent <= whole
            for offset, extent, whole in zip(box.offsets, box.sizes, size, strict=True)
        )
        if not inside:
            raise NotDescribed(f"describes a piece of {shown(name)} that is not within it")
        boxes.append(box)
    return StoredTensor(dtype, size, tuple(boxes))


def integer(name: Any, value: Any) -> int:
    """A count or a position; :raises NotDescribed: when it is neither."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INTEGER:
        raise NotDescribed(not_a_tensor(name))
    return value


def _sizes(name: Any, values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > _MAX_DIMS:
        raise NotDescribed(not_a_tensor(name))
    sizes = tuple(integer(name, value) for value in values)
    if prod(sizes) > _MAX_INTEGER:
        raise NotDescribed(not_a_tensor(name))
    return sizes


def check_files(tensors: StoredTensors, files: Collection[str]) -> None:
    """:raises NotDescribed: when a tensor is of no known dtype, or lies in what is not a file of the step."""
    for name, tensor in tensors.items():
        if tensor.dtype not in dtypes():
            raise NotDescribed(f"gives {shown(name)} the dtype {shown(tensor.dtype)}, unknown to torch")
        for chunk in tensor.chunks:
            if chunk.file not in files:
                raise NotDescribed(f"points to {shown(chunk.file)}, not a file of the step")


def check_lengths(tensors: StoredTensors, sizes: Mapping[str, int]) -> None:
    """:param sizes: of the files, in bytes.
    :raises NotDescribed: when a tensor lies beyond the end of its file.
    """
    for tensor in tensors.values():
        for chunk in tensor.chunks:
            if sizes[chunk.file] < chunk.start + chunk.length:
                raise NotDescribed(
                    f"expects {chunk.start + chunk.length:,} bytes in {chunk.file}, which has "
                    f"{sizes[chunk.file]:,}"
                )


_DTYPES: dict[str, torch.dtype] = {}


def dtypes() -> Mapping[str, torch.dtype]:
    """torch's dtypes by the names that they are saved under."""
    if not _DTYPES:
        import torch

        # Not by getattr(torch, name): that imports what it is asked for.
        of_torch = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
        _DTYPES.update({str(dtype).removeprefix("torch."): dtype for dtype in of_torch})
    return _DTYPES


def not_a_tensor(name: Any) -> str:
    return f"does not describe {shown(name)} as a tensor"


def shown(name: Any) -> str:
    """A name from a file, short enough for a message."""
    if not isinstance(name, str):
        return f"a {type(name).__name__}"
    return repr(name) if len(name) <= _SHOWN else f"{name[:_SHOWN]!r}..."
