"""Tensors that are somewhere else: their shape is known, their values are read when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch

from hekaton.precision import in_precision

Region: TypeAlias = tuple[slice, ...]
"""A box of a tensor: one slice per dim, with start and stop and without step."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be read, whole or in part.

    :param load: ``load(region)`` returns the values of a region, on the CPU; not to be written to, they may
        be a file's.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[Region], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self, region: Region | None = None) -> torch.Tensor:
        """The values of ``region``, by default all of them."""
        wanted = self.everything if region is None else region
        values = self.load(wanted)
        assert values.shape == torch.Size(part.stop - part.start for part in wanted)
        assert values.dtype == self.dtype
        return values

    @property
    def everything(self) -> Region:
        return tuple(slice(0, size) for size in self.shape)


def whole(tensor: torch.Tensor) -> LazyTensor:
    """A tensor that is in memory, or on the meta device, as a lazy one."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda region: tensor[region])


def cast(tensor: LazyTensor, dtype: torch.dtype, *, what: str = "a tensor") -> LazyTensor:
    """The same in another precision; what is not floating-point stays as it is.

    Loading it raises ``CheckpointError`` for a finite value that the precision has no number for: it would
    become infinite.

    :param what: the tensor, for that message.
    """
    if tensor.dtype == dtype or not tensor.dtype.is_floating_point:
        return tensor

    def load(region: Region) -> torch.Tensor:
        return in_precision(tensor.load(region), dtype, what=what)

    return LazyTensor(tensor.shape, dtype, load)


def same_values(one: LazyTensor, other: LazyTensor, *, rows: int = 4096) -> bool:
    """Whether two tensors are the same bit for bit, compared in blocks of rows."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.shape:
        return torch.equal(one.read().view(torch.uint8), other.read().view(torch.uint8))
    for start in range(0, one.shape[0], rows):
        block = (slice(start, min(start + rows, one.shape[0])), *one.everything[1:])
        here, there = (tensor.read(block).contiguous().view(torch.uint8) for tensor in (one, other))
        if not torch.equal(here, there):
            return False
    return True
