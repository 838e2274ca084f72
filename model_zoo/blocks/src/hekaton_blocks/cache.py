"""Keys and values of the tokens so far, kept by attention layers while texts are generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.errors import PluginError
from hekaton_blocks.attention import DocumentAttention
from hekaton_blocks.decoder import Decoder

if TYPE_CHECKING:
    from hekaton.spec import CachedForward


class KeyValueCache:
    """Keys and values of every attention layer, of some rows of tokens.

    Those of a token lie at its position. So rows may be of different lengths, what a query sees follows from
    positions alone, and padding is replaced before anything sees it.

    :param rows: texts that are generated together.
    :param length: positions of each.
    """

    def __init__(self, rows: int, length: int) -> None:
        self._rows = torch.arange(rows)[:, None]
        self._length = length
        self._kept: dict[DocumentAttention, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[Any, torch.Tensor] = {}
        self._positions = torch.empty(rows, 0, dtype=torch.long)
        self._keys_at = torch.arange(0)

    def begin(self, positions: torch.Tensor) -> None:
        """Say where the tokens of the next forward stand.

        :param positions: (rows, n)
        """
        self._rows = self._rows.to(positions.device)
        self._positions = positions
        self._keys_at = torch.arange(int(positions.max()) + 1, device=positions.device)
        self._masks.clear()

    def extend(
        self, layer: DocumentAttention, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keep keys and values of a layer's new tokens, and give it all that it has so far.

        :param k: (rows, n_kv_heads, n, head_dim), and ``v`` likewise.
        :returns: keys and values, (rows, n_kv_heads, m, head_dim), of the positions 0 to m - 1, and which of
            them each new token sees: bool, (rows, 1, n, m).
        """
        if layer not in self._kept:
            self._kept[layer] = (self._room_for(k), self._room_for(v))
        all_k, all_v = self._kept[layer]
        all_k[self._rows, self._positions] = k.transpose(1, 2)
        all_v[self._rows, self._positions] = v.transpose(1, 2)
        end = len(self._keys_at)
        return all_k[:, :end].transpose(1, 2), all_v[:, :end].transpose(1, 2), self._mask(layer)

    def _room_for(self, new: torch.Tensor) -> torch.Tensor:
        rows, heads, _, channels = new.shape
        # Not empty: a key that is masked has a weight of 0, and 0 times NaN is NaN.
        return new.new_zeros(rows, self._length, heads, channels)

    def _mask(self, layer: DocumentAttention) -> torch.Tensor:
        pattern = layer.pattern
        if pattern.mask_key not in self._masks:
            of_rows = [pattern.mask(None, queries_at, self._keys_at) for queries_at in self._positions]
            self._masks[pattern.mask_key] = torch.stack(of_rows)[:, None]
        return self._masks[pattern.mask_key]


class _Cached:
    """Runs a model whose layers have a cache."""

    def __init__(self, model: Any, cache: KeyValueCache) -> None:
        self._model, self._cache = model, cache

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self._cache.begin(positions)
        logits: torch.Tensor = self._model(tokens, positions=positions, documents=None)
        return logits


class _CachedDecoder(_Cached):
    """Computes of a prompt only the logits that a token is drawn from."""

    def read(self, tokens: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """See :class:`hekaton.spec.ReadsPrompts`."""
        rows = torch.arange(len(tokens), device=tokens.device)

        def chosen(output: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (given[0][rows, columns],)

        hook = self._model.output.register_forward_pre_hook(chosen)
        try:
            return self(tokens, positions)
        finally:
            hook.remove()


@contextmanager
def key_value_cache(model: nn.Module, rows: int, length: int) -> Iterator[CachedForward]:
    """For ``TrainSpec.cache``, of a model whose only exchange between tokens is its
    :class:`~hekaton_blocks.DocumentAttention`, and which takes the place of a token from ``positions``.

    :raises PluginError: for a model without such layers, or whose tokens see later ones.
    """
    layers = [module for module in model.modules() if isinstance(module, DocumentAttention)]
    if not layers or not all(layer.pattern.causal for layer in layers):
        lacks = "see later tokens" if layers else "are not DocumentAttention"
        raise PluginError(
            f"key_value_cache cannot keep the keys of {type(model).__name__}, whose attention layers {lacks}",
            hint="leave TrainSpec.cache out",
        )
    cache = KeyValueCache(rows, length)
    forward = (_CachedDecoder if isinstance(model, Decoder) else _Cached)(model, cache)
    for layer in layers:
        layer.cache = cache
    try:
        yield forward
    finally:
        for layer in layers:
            layer.cache = None
