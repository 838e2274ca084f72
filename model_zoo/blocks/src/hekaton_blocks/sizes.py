"""Bounds of what configurations of models count, and heads that fit each other."""

from __future__ import annotations

from typing import Annotated, Protocol, TypeAlias

from pydantic import Field

from hekaton.errors import ConfigError

MAX_LAYERS = 4096
LayerCount: TypeAlias = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
"""Layers of a model. Each is a module, also on the meta device: a number with a few digits too many would
fill the memory before anything could be said. The deepest transformers have 1,000 (Wang et al., 2022)."""


class Heads(Protocol):
    """What a configuration says of grouped-query attention."""

    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...


def check_heads(config: Heads) -> None:
    """:raises ConfigError: for heads that rotary positions cannot turn, or that cannot share keys."""
    if config.head_dim % 2:
        raise ConfigError(f"head_dim = {config.head_dim} is odd; rotary positions turn channels in pairs")
    if config.n_heads % config.n_kv_heads:
        raise ConfigError(f"n_kv_heads = {config.n_kv_heads} does not divide n_heads = {config.n_heads}")
