"""Layout-invariant initialisation: every layout starts from the same global weights, bit for bit.

A parameter is drawn in blocks of rows, each from its own CPU generator keyed by (seed, parameter name,
block). A rank draws the blocks that its shard touches and keeps its part, so no value depends on the rank,
the mesh or the device, and nothing is communicated.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from hekaton.errors import ConfigError
from hekaton.parallel.ties import ties
from hekaton.patterns import resolve

if TYPE_CHECKING:
    from torch.distributed.tensor import Placement

BLOCK_NUMEL = 2**20
"""Elements of a parameter drawn from one generator, up to whole rows. Part of the definition of a seed."""


class Initializer(Protocol):
    """Fills a tensor in place; the result may depend on nothing but the arguments."""

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        """:param tensor: some whole rows of the parameter, float32, on CPU; :param name: the parameter's."""


@dataclass(frozen=True)
class Constant:
    """The same value everywhere."""

    value: float

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        tensor.fill_(self.value)


@dataclass(frozen=True)
class Normal:
    """Normal around 0."""

    std: float

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        tensor.normal_(0.0, self.std, generator=generator)


@dataclass(frozen=True)
class TruncatedNormal:
    """Normal around 0, cut at ``cutoff``, an absolute value (2.0 as in ``torch.nn.init.trunc_normal_``)."""

    std: float
    cutoff: float = 2.0

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        nn.init.trunc_normal_(tensor, 0.0, self.std, -self.cutoff, self.cutoff, generator=generator)


@dataclass(frozen=True)
class DepthScaled:
    """Truncated normal with ``std / sqrt(2 * (layer + 1))``, the layer being the first number in the name.

    Keeps the variance of the residual stream from growing with depth (GPT-2, section 2.3, per layer).
    """

    std: float
    cutoff: float = 2.0

    def __call__(self, tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        layer = re.search(r"(?:^|\.)(\d+)\.", name)
        if layer is None:
            raise ConfigError(f"DepthScaled needs a layer number in the parameter's name, not '{name}'")
        std = self.std / math.sqrt(2 * (int(layer[1]) + 1))
        TruncatedNormal(std, self.cutoff)(tensor, name=name, generator=generator)


def resolve_init(model: nn.Module, table: Mapping[str, Initializer], *, what: str) -> dict[str, Initializer]:
    """The initialiser of every parameter of the whole model.

    Tied parameters are drawn once, under the first of their names, by the entry of the first name with one.

    :raises ConfigError: for an entry that matches nothing, two entries for one name, a parameter without one.
    """
    every = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    entries = resolve(table, every, what=f"init table of {what}")
    for first, *others in ties(model):
        by = next((name for name in (first, *others) if name in entries), None)
        if by is not None:
            entries[first] = entries[by]
    names = [name for name, _ in model.named_parameters()]
    bare = [name for name in names if name not in entries]
    if bare:
        raise ConfigError(
            f"init table of {what}: no entry for {', '.join(bare[:5])}"
            + (f" and {len(bare) - 5} more" if len(bare) > 5 else "")
        )
    return {name: entries[name] for name in names}


def initialize(model: nn.Module, initializers: Mapping[str, Initializer], *, seed: int) -> None:
    """Fill every parameter of ``model``, which may be a stage of the whole one, sharded in any way.

    Blocks are drawn by as many threads as torch computes with; whichever draws a block, its values are the
    same.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        for fill in _fills(model, initializers, seed=seed):
            fill()
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(fill) for fill in _fills(model, initializers, seed=seed)]:
                done.result()
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads


def rehearse(model: nn.Module, initializers: Mapping[str, Initializer], *, seed: int) -> None:
    """Go through :func:`initialize` for a model without memory: find the rows that this rank would fill, and
    draw one row of each parameter; of those that differ in the numbers of their names only, one of the first.

    :raises ConfigError: from an initialiser that does not fit its parameter.
    """
    drawn: set[tuple[object, ...]] = set()
    for name, parameter in model.named_parameters():
        local: Any = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        shape = parameter.shape if parameter.dim() else (1,)
        owned = tuple(len(indices) for indices in owned_indices(parameter))
        assert owned == local.shape, f"'{name}' is {tuple(local.shape)} on this rank, to be filled as {owned}"
        kind = (re.sub(r"\d+", "*", name), id(initializers[name]), shape[1:])
        if kind not in drawn:  # a row of experts is a whole matrix, which takes a quarter of a second
            drawn.add(kind)
            _draw((1, *shape[1:]), 0, initializers[name], name=name, seed=seed)


def _fills(
    model: nn.Module, initializers: Mapping[str, Initializer], *, seed: int
) -> Iterator[Callable[[], None]]:
    """What fills the parameters, a block each."""
    for name, parameter in model.named_parameters():
        yield from _fills_of(parameter, initializers[name], name=name, seed=seed)


def _fills_of(
    parameter: torch.Tensor, initializer: Initializer, *, name: str, seed: int
) -> Iterator[Callable[[], None]]:
    from torch.distributed.tensor import DTensor

    local = (parameter.to_local() if isinstance(parameter, DTensor) else parameter).detach()
    if local.numel() == 0:
        return
    if parameter.dim() == 0:
        yield partial(_fill, local[None], (1,), 0, [torch.zeros(1)], initializer, name=name, seed=seed)
        return
    owned = owned_indices(parameter)
    rows_per_block = max(1, BLOCK_NUMEL // max(1, math.prod(parameter.shape[1:])))
    blocks, counts = torch.unique_consecutive(owned[0] // rows_per_block, return_counts=True)
    filled = 0
    for block, count in zip(blocks.tolist(), counts.tolist(), strict=True):
        start = block * rows_per_block
        shape = (min(rows_per_block, parameter.shape[0] - start), *parameter.shape[1:])
        mine = [owned[0][filled : filled + count] - start, *owned[1:]]
        target = local[filled : filled + count]
        yield partial(_fill, target, shape, block, mine, initializer, name=name, seed=seed)
        filled += count


@torch.no_grad()
def _fill(
    target: torch.Tensor,
    shape: tuple[int, ...],
    block: int,
    owned: Sequence[torch.Tensor],
    initializer: Initializer,
    *,
    name: str,
    seed: int,
) -> None:
    """Draw a block of rows, and keep what this rank owns of it."""
    values = _draw(shape, block, initializer, name=name, seed=seed)
    for dim, indices in enumerate(owned):
        if len(indices) != shape[dim]:
            values = values.index_select(dim, indices)
    target.copy_(values)


def _draw(
    shape: tuple[int, ...], block: int, initializer: Initializer, *, name: str, seed: int
) -> torch.Tensor:
    key = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little", signed=True))
    values = torch.empty(shape, dtype=torch.float32, device="cpu")
    initializer(values, name=name, generator=generator)
    return values


def owned_indices(parameter: torch.Tensor) -> list[torch.Tensor]:
    """For each dim, the global indices that this rank's shard holds, in order.

    An index tensor is distributed just like the parameter, so that every kind of sharding (uneven, strided)
    is torch's to know.
    """
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    if not isinstance(parameter, DTensor):
        return [torch.arange(size) for size in parameter.shape]
    owned = []
    for dim, size in enumerate(parameter.shape):
        placements = [
            _along_first_dim(placement) if getattr(placement, "dim", None) == dim else Replicate()
            for placement in parameter.placements
        ]
        index = torch.arange(size, device=parameter.device_mesh.device_type)
        local = distribute_tensor(index, parameter.device_mesh, placements, src_data_rank=None).to_local()
        owned.append(local.cpu())
    return owned


def _along_first_dim(placement: Any) -> Placement:
    from torch.distributed.tensor import Shard

    # FSDP over TP shards in strides; that placement is no subclass of Shard and says False to is_shard().
    return (
        Shard(0) if isinstance(placement, Shard) else type(placement)(0, split_factor=placement.split_factor)
    )
