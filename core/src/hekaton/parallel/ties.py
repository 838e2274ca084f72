"""Tied parameters: one tensor under several names, which stays one however the model is changed around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hekaton.errors import ConfigError


def ties(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, in the order of the model."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def tie(model: nn.Module, groups: Sequence[Sequence[str]]) -> None:
    """Give all names of a group the parameter that the first of them has.

    :raises ConfigError: when styles of different kinds have placed its copies in different ways.
    """
    for first, *others in groups:
        parameter = model.get_parameter(first)
        for name in others:
            copy = model.get_parameter(name)
            if _placement(copy) != _placement(parameter):
                raise ConfigError(
                    f"{first} and {name} are one tied parameter, and the tensor-parallel styles of their "
                    f"modules place it differently: {_placement(parameter)}, and {_placement(copy)}",
                    hint="give both modules styles that cut it alike, or train without tensor parallel",
                )
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)


def _placement(parameter: Any) -> str:
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor):
        return "not distributed"
    return ", ".join(
        "whole on every rank"
        if isinstance(placement, Replicate)
        else f"cut along dim {getattr(placement, 'dim', None)}"
        for placement in parameter.placements
    )
