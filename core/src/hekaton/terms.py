"""Terms of the loss that a model computes inside its layers, beside those that its objective makes of its
outputs: the balance of experts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hekaton.errors import PluginError
from hekaton.recomputation import is_recomputed


@dataclass
class _Collection:
    scales: Mapping[str, float]
    sums: dict[str, torch.Tensor] = field(default_factory=dict)


# Not per thread: backward recomputes layers on threads of its own.
_collections: list[_Collection] = []


@contextlib.contextmanager
def collected_terms(scales: Mapping[str, float]) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the terms of the forward passes within, and let their backward passes train on them.

    :param scales: term -> its weight divided by the number of rows of the whole step.
    :returns: term -> its sum over the layers and rows that passed through, as they come.
    """
    collection = _Collection(scales)
    _collections.append(collection)
    try:
        yield collection.sums
    finally:
        _collections.remove(collection)


def add_term(x: torch.Tensor, name: str, value: torch.Tensor) -> torch.Tensor:
    """Add a term to the loss of the step; outside of a training step nothing happens.

    Its gradient joins in where ``x`` passes backward, so it works in any stage of a pipeline, whose stages
    return hidden states and no losses.

    :param x: a tensor that the loss depends on; use what is returned in its place.
    :param name: one that ``TrainSpec.terms`` has.
    :param value: a scalar, the sum over the rows of ``x``; of rows that several processes hold parts of, this
        process's own part. A second call of the same name adds to it.
    :raises PluginError: for a term that ``TrainSpec.terms`` does not name.
    """
    if not _collections or not torch.is_grad_enabled():
        return x
    collection = _collections[-1]
    if name not in collection.scales:
        raise PluginError(
            f"the model adds a term '{name}' to the loss, which its TrainSpec.terms does not name",
            hint=f"it names {', '.join(collection.scales) or 'none'}",
        )
    if not is_recomputed():
        value_so_far = collection.sums.get(name)
        given = value.detach()
        collection.sums[name] = given if value_so_far is None else value_so_far + given
    attach: Any = _WithTerm.apply
    with_term: torch.Tensor = attach(x, value, collection.scales[name])
    return with_term


class _WithTerm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale, ctx.dtype = scale, value.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        return grads[0], grads[0].new_full((), ctx.scale, dtype=ctx.dtype), None
