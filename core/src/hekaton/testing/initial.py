"""Are the values that a model starts from those of its initialisers alone?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from hekaton.init import Initializer, initialize

STD_FOR_ZEROS = 0.1


@torch.no_grad()
def check_initial(model: nn.Module, initializers: Mapping[str, Initializer], *, what: str) -> None:
    """Initialise a model twice, from other values and another state of torch's generator, and compare.

    :param model: on the CPU; afterwards it has its initial values for seed 0.
    :raises AssertionError: for values that are not finite, or that depend on something else than the
        arguments of the initialiser: on another layout they would be others.
    """
    found: list[dict[str, torch.Tensor]] = []
    for seed, before in ((1, 0.0), (2, 1.0)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            initialize(model, {name: _after(before, one) for name, one in initializers.items()}, seed=0)
        found.append({name: parameter.clone() for name, parameter in model.named_parameters()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]) or value.isnan().any(), (
            f"{what}: the initial values of '{name}' depend on more than the initialiser's arguments: fill "
            "all of the tensor, with random numbers of its generator alone"
        )
        assert value.isfinite().all(), f"{what}: the initial values of '{name}' are not finite"


def without_zeros(initializers: Mapping[str, Initializer]) -> dict[str, Initializer]:
    """The initialisers, where what is 0 throughout is drawn from a normal distribution instead."""
    return {name: _nonzero(one) for name, one in initializers.items()}


def _nonzero(initializer: Initializer) -> Initializer:
    def initialize_nonzero(tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        initializer(tensor, name=name, generator=generator)
        if not tensor.any():
            tensor.normal_(std=STD_FOR_ZEROS, generator=generator)

    return initialize_nonzero


def _after(value: float, initializer: Initializer) -> Initializer:
    """The initialiser, given a tensor that is filled with a value."""

    def initialize_filled(tensor: torch.Tensor, *, name: str, generator: torch.Generator) -> None:
        tensor.fill_(value)
        initializer(tensor, name=name, generator=generator)

    return initialize_filled
