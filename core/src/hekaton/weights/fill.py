"""Lazy tensors into the live ones of a run, each rank its own part."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hekaton.init import owned_indices
from hekaton.precision import in_precision
from hekaton.weights.lazy import LazyTensor


@torch.no_grad()
def fill(tensors: Mapping[str, torch.Tensor], source: Mapping[str, LazyTensor]) -> int:
    """Fill ``tensors``, which may be sharded in any way, in place; without communication.

    Each is read as the smallest box that holds this rank's part of it, and converted to its dtype.

    :returns: the bytes that were read, counted as those of the result.
    :raises CheckpointError: for a value that a tensor's precision has no number for.
    """
    from torch.distributed.tensor import DTensor

    count = 0
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.numel() == 0:
            continue
        owned = owned_indices(tensor)
        values = source[name].read(tuple(slice(int(mine[0]), int(mine[-1]) + 1) for mine in owned))
        count += values.nbytes
        for dim, mine in enumerate(owned):
            if len(mine) != values.shape[dim]:
                values = values.index_select(dim, mine - mine[0])
        local.copy_(in_precision(values, local.dtype, what=name))
    return count
