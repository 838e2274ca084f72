"""A digest of a tensor's bits, computed where the tensor is: equal bits have equal digests, on every rank.

The tensor is read as words of up to 32 bits, each multiplied by an odd 64-bit number of its position; their
sum modulo 2**64 is the digest of a chunk (multilinear hashing: Carter and Wegman, 1979), and the chunks' own
are put together as the coefficients of a polynomial. A change of a single word always shows, since an odd
number has an inverse modulo 2**64; others go unseen with a probability of about 2**-32. So does a change of
order, because no two positions have the same number.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch

CHUNK = {"cpu": 2**18}
"""Words of a chunk by kind of device: on a CPU their products, 2 MiB, stay in its cache, in half the time."""
LARGE_CHUNK = 2**20
"""Words of a chunk on all other devices, where each costs a few kernels."""
_BASE = 0x5851F42D4C957F2D
"""An odd number (Knuth's multiplier of a linear congruential generator of 64 bits)."""


@torch.no_grad()
def digests(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The digests of plain tensors, wherever each is.

    :returns: (tensors,) int64 on ``device``. Nothing waits for the device but what lies on another one.
    """
    return _together([digest(tensor) for tensor in tensors], device, torch.int64)


@torch.no_grad()
def differences(
    some: Iterable[torch.Tensor], others: Iterable[torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Which of some plain tensors have other bits than their counterparts: a quarter of the time of digests.

    :param others: as many, each where its counterpart is.
    :returns: (tensors,) bool on ``device``. Nothing waits for the device but what lies on another one.
    """
    each = [_differ(one, other) for one, other in zip(some, others, strict=True)]
    return _together(each, device, torch.bool)


def _differ(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.shape != other.shape or one.dtype != other.dtype:
        return torch.ones((), dtype=torch.bool, device=one.device)
    words, others = _words(one.detach()), _words(other.detach())
    if words.dtype != others.dtype:  # of views that begin at other places of their storage
        words, others = words.view(torch.uint8), others.view(torch.uint8)
    if words.device.type == "cpu":
        return torch.tensor(not torch.equal(words, others))  # which on other devices waits for them
    return (words != others).any()


def _together(each: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Scalars, each on its device, as one tensor on a device."""
    if not each:
        return torch.zeros(0, dtype=dtype, device=device)
    if all(one.device == device for one in each):
        return torch.stack(list(each))
    result = torch.empty(len(each), dtype=dtype, device=device)
    for where in dict.fromkeys(one.device for one in each):
        indices = [index for index, one in enumerate(each) if one.device == where]
        result[torch.tensor(indices, device=device)] = torch.stack([each[i] for i in indices]).to(device)
    return result


@torch.no_grad()
def digest(tensor: torch.Tensor) -> torch.Tensor:
    """The digest of a plain tensor of any shape and precision: an int64 scalar on its device."""
    words = _words(tensor.detach())
    size = CHUNK.get(tensor.device.type, LARGE_CHUNK)
    numbers = _numbers(tensor.device, size)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, words.numel(), size):
        chunk = words[start : start + size]
        total = total * _BASE + _weighted(chunk, numbers[: chunk.numel()])
    return total


def _weighted(words: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """The sum of the products, modulo 2**64."""
    if words.device.type == "cpu":
        return torch.dot(words.to(torch.int64), numbers)  # which CUDA has for floating-point numbers only
    return (words * numbers).sum()


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as a flat tensor of integers of at most 32 bits."""
    flat = tensor.resolve_conj().resolve_neg().contiguous().flatten()
    if flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    size, offset = flat.numel() * flat.itemsize, flat.storage_offset() * flat.itemsize
    width = next(width for width in (4, 2, 1) if size % width == 0 and offset % width == 0)
    return flat.view({4: torch.int32, 2: torch.int16, 1: torch.int8}[width])


@functools.cache
def _numbers(device: torch.device, count: int) -> torch.Tensor:
    """(count,) odd int64: the same on every rank and device, whatever the version of torch."""
    return torch.from_numpy(position_numbers(count).view(np.int64)).to(device)


def position_numbers(count: int) -> np.ndarray:
    """(count,) odd uint64: SplitMix64 (Steele, Lea and Flood, 2014) from state 0, each output made odd."""
    with np.errstate(over="ignore"):
        state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)
