"""A model on the meta device, where parameters have shapes and no values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hekaton.errors import ConfigError, PluginError
from hekaton.init import Initializer
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec

T = TypeVar("T")

MAX_MODULES = 200_000
"""Modules of a model: thrice those of 61 layers of 256 experts with four modules each, and some ten seconds
to build. Without a bound, a number of layers with a few digits too many fills the memory."""


def on_meta(spec: TrainSpec, config: Any) -> nn.Module:
    """Build a model in no memory.

    :raises ConfigError: when it has more than :data:`MAX_MODULES` modules, before all of them are built.
    :raises PluginError: when it is no module.
    """
    count = 0

    def counted(_parent: nn.Module, _name: str, child: nn.Module | None) -> None:
        nonlocal count
        count += child is not None
        if count > MAX_MODULES:
            raise ConfigError(
                f"{spec.name} has more than {MAX_MODULES:,} modules in this size",
                hint=_numbers(config),
            )

    handle = register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"):
            model = spec.model(config)
    finally:
        handle.remove()
    return given(spec, "model", model, nn.Module)


def tables_of(spec: TrainSpec, config: Any) -> tuple[ParallelPlan, Mapping[str, Initializer]]:
    """A model's plan, and its initial values by pattern.

    :raises PluginError: for what is neither.
    """
    plan = given(spec, "plan", spec.plan(config), ParallelPlan)
    init = given(spec, "init", spec.init(config), Mapping)  # type: ignore[type-abstract]
    for pattern, initializer in init.items():
        if not callable(initializer):
            raise PluginError(
                f"model '{spec.name}': init gives {initializer!r} for '{pattern}'",
                hint="it gives initialisers, such as hekaton.init.Constant(1.0)",
            )
    return plan, init


def given(spec: TrainSpec, field: str, value: Any, kind: type[T]) -> T:
    """What a field of a specification has given, for a configuration.

    :raises PluginError: when it is of another type.
    """
    if not isinstance(value, kind):
        raise PluginError(
            f"model '{spec.name}': {field} of its TrainSpec gives {type(value).__name__}, not {kind.__name__}"
        )
    return value


def _numbers(config: Any) -> str:
    """The field that most likely asks for them."""
    numbers = {name: value for name, value in vars(config).items() if "layers" in name and type(value) is int}
    return ", ".join(f"{name} is {value:,}" for name, value in numbers.items()) or "choose a smaller size"
