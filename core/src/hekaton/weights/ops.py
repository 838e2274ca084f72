"""What lies between a tensor of ours and its counterpart elsewhere. Every op goes both ways.

Ops read no values: they say how to read the result, so that a conversion holds one tensor at a time, and a
process that needs some rows of a result reads little more than these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import torch

from hekaton.errors import CheckpointError
from hekaton.weights.lazy import LazyTensor, Region

Tensors = Sequence[LazyTensor]


class Op(Protocol):
    """A way to the other side, and back. Tensors of one entry go in and come out, in order."""

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        """:raises CheckpointError: for shapes that it cannot take, and so does ``from_hf``."""

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]: ...


@dataclass(frozen=True)
class Inverse:
    """An op the other way round: ``Inverse(Unstack(8))`` stacks on the way to Hugging Face."""

    op: Op

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        return self.op.from_hf(ours)

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]:
        return self.op.to_hf(theirs)


@dataclass(frozen=True, init=False)
class Each:
    """One op per tensor, each from one to one; ``None`` leaves a tensor as it is."""

    ops: tuple[Op | None, ...]

    def __init__(self, *ops: Op | None) -> None:
        object.__setattr__(self, "ops", ops)

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        pairs = zip(self.ops, ours, strict=True)
        return [tensor if op is None else op.to_hf([tensor])[0] for op, tensor in pairs]

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]:
        pairs = zip(self.ops, theirs, strict=True)
        return [tensor if op is None else op.from_hf([tensor])[0] for op, tensor in pairs]


@dataclass(frozen=True)
class Transpose:
    """Two dims exchanged; its own inverse."""

    dim0: int = -2
    dim1: int = -1

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        return [self._transposed(tensor) for tensor in ours]

    from_hf = to_hf

    def _transposed(self, tensor: LazyTensor) -> LazyTensor:
        a, b = self.dim0 % len(tensor.shape), self.dim1 % len(tensor.shape)
        order = list(range(len(tensor.shape)))
        order[a], order[b] = b, a

        def load(region: Region) -> torch.Tensor:
            return tensor.read(tuple(region[dim] for dim in order)).transpose(a, b)

        return LazyTensor(tuple(tensor.shape[dim] for dim in order), tensor.dtype, load)


@dataclass(frozen=True)
class RotaryHalves:
    """The rows of a query or key projection, reordered within each head for the other rotary layout.

    Ours, and Meta's, rotates neighbouring channels (0, 1), (2, 3), ...; that of transformers rotates channel
    ``j`` with ``j + head_dim / 2``. So theirs are our even rows, then our odd ones.

    :param n_heads: heads in the rows: (n_heads * head_dim, ...), a weight or a bias.
    """

    n_heads: int

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        return [self._reordered(tensor, (-1, 2)) for tensor in ours]

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]:
        return [self._reordered(tensor, (2, -1)) for tensor in theirs]

    def _reordered(self, tensor: LazyTensor, of_head: tuple[int, int]) -> LazyTensor:
        head_dim, rest = divmod(tensor.shape[0], self.n_heads)
        if rest or head_dim % 2:
            raise CheckpointError(
                f"{tensor.shape[0]} rows are not {self.n_heads} heads of an even number of rows"
            )

        def load(region: Region) -> torch.Tensor:
            rows = region[0]
            first = rows.start // head_dim * head_dim
            last = -(-rows.stop // head_dim) * head_dim
            heads = tensor.read((slice(first, last), *region[1:]))
            pairs = heads.reshape((last - first) // head_dim, *of_head, *heads.shape[1:])
            return pairs.transpose(1, 2).flatten(0, 2)[rows.start - first : rows.stop - first]

        return LazyTensor(tensor.shape, tensor.dtype, load)


@dataclass(frozen=True)
class Fuse:
    """Several tensors of ours are one of theirs, joined along ``dim``.

    :param sizes: how many rows of ``dim`` each of ours has: queries, keys, values under grouped-query
        attention.
    :param groups: theirs takes so many turns, ``1 / groups`` of each of ours per turn: with as many groups
        as key/value heads, each group's queries, key and value are neighbours; with as many as rows, rows
        alternate.
    """

    sizes: tuple[int, ...]
    dim: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        assert self.dim >= 0
        assert all(size % self.groups == 0 for size in self.sizes)

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        dim, first = self.dim, ours[0]
        shapes = [(*first.shape[:dim], size, *first.shape[dim + 1 :]) for size in self.sizes]
        _expect(ours, shapes, self)
        shape = (*first.shape[:dim], sum(self.sizes), *first.shape[dim + 1 :])
        load = partial(self._load_fused, tuple(ours))
        return [LazyTensor(shape, first.dtype, load)]

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]:
        dim, fused = self.dim, theirs[0]
        _expect(theirs, [(*fused.shape[:dim], sum(self.sizes), *fused.shape[dim + 1 :])], self)
        return [
            LazyTensor(
                (*fused.shape[:dim], size, *fused.shape[dim + 1 :]),
                fused.dtype,
                partial(self._load_part, fused, end - size, size),
            )
            for size, end in zip(self.sizes, accumulate(self.sizes), strict=True)
        ]

    def _load_fused(self, parts: tuple[LazyTensor, ...], region: Region) -> torch.Tensor:
        dim, rows = self.dim, region[self.dim]
        if self.groups > 1:
            turns = [
                _in_turns(part.read(_along(region, dim, 0, size)), dim, self.groups)
                for part, size in zip(parts, self.sizes, strict=True)
            ]
            fused = torch.cat(turns, dim + 1).flatten(dim, dim + 1)
            return fused.narrow(dim, rows.start, rows.stop - rows.start)
        pieces = []
        for part, size, end in zip(parts, self.sizes, accumulate(self.sizes), strict=True):
            start, stop = max(rows.start - end + size, 0), min(rows.stop - end + size, size)
            if start < stop:
                pieces.append(part.read(_along(region, dim, start, stop)))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)

    def _load_part(self, fused: LazyTensor, offset: int, size: int, region: Region) -> torch.Tensor:
        dim, rows = self.dim, region[self.dim]
        if self.groups == 1:
            return fused.read(_along(region, dim, rows.start + offset, rows.stop + offset))
        turns = _in_turns(fused.read(_along(region, dim, 0, fused.shape[dim])), dim, self.groups)
        part = turns.narrow(dim + 1, offset // self.groups, size // self.groups).flatten(dim, dim + 1)
        return part.narrow(dim, rows.start, rows.stop - rows.start)


@dataclass(frozen=True)
class Unstack:
    """One tensor of ours, (count, ...), is ``count`` tensors of theirs: the experts of a layer."""

    count: int

    def to_hf(self, ours: Tensors) -> list[LazyTensor]:
        stacked = ours[0]
        _expect(ours, [(self.count, *stacked.shape[1:])], self)

        def load(number: int, region: Region) -> torch.Tensor:
            return stacked.read((slice(number, number + 1), *region))[0]

        return [
            LazyTensor(stacked.shape[1:], stacked.dtype, partial(load, number))
            for number in range(self.count)
        ]

    def from_hf(self, theirs: Tensors) -> list[LazyTensor]:
        first = theirs[0]
        _expect(theirs, [first.shape] * self.count, self)

        def load(region: Region) -> torch.Tensor:
            wanted = theirs[region[0]]
            sizes = [part.stop - part.start for part in region]
            stacked = torch.empty(sizes, dtype=first.dtype, device="cpu")
            for into, tensor in zip(stacked, wanted, strict=True):
                into.copy_(tensor.read(region[1:]))
            return stacked

        return [LazyTensor((self.count, *first.shape), first.dtype, load)]


def _in_turns(tensor: torch.Tensor, dim: int, groups: int) -> torch.Tensor:
    """(..., size, ...) -> (..., groups, size / groups, ...)"""
    return tensor.reshape(*tensor.shape[:dim], groups, -1, *tensor.shape[dim + 1 :])


def _along(region: Region, dim: int, start: int, stop: int) -> Region:
    return (*region[:dim], slice(start, stop), *region[dim + 1 :])


def _expect(tensors: Tensors, shapes: Sequence[tuple[int, ...]], op: Op) -> None:
    if [tensor.shape for tensor in tensors] != list(shapes):
        found = ", ".join(str(tensor.shape) for tensor in tensors)
        raise CheckpointError(f"{op} takes {', '.join(map(str, shapes))}, not {found}")
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise CheckpointError(f"{op} takes tensors of one dtype")
