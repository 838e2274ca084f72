"""A model on the meta device, where parameters have shapes and no values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from hekaton.errors import ConfigError
from hekaton.spec import TrainSpec

MAX_MODULES = 200_000
"""Modules of a model: thrice those of 61 layers of 256 experts with four modules each, and some ten seconds
to build. Without a bound, a number of layers with a few digits too many fills the memory."""


def on_meta(spec: TrainSpec, config: Any) -> nn.Module:
    """Build a model in no memory.

    :raises ConfigError: when it has more than :data:`MAX_MODULES` modules, before all of them are built.
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
            return spec.model(config)
    finally:
        handle.remove()


def _numbers(config: Any) -> str:
    """The field that most likely asks for them."""
    numbers = {name: value for name, value in vars(config).items() if "layers" in name and type(value) is int}
    return ", ".join(f"{name} is {value:,}" for name, value in numbers.items()) or "choose a smaller size"
