"""Which tokens may see each other where documents are packed into rows, as attention kernels take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hekaton_blocks.pattern import CAUSAL, AttentionPattern
from hekaton_blocks.sinks import sink_weight

if TYPE_CHECKING:
    from hekaton_blocks.backends import AttentionBackend

BLOCK = 128
"""Side of the tiles, in tokens, that the kernel skips, masks or computes whole."""


class PackedDocuments(NamedTuple):
    """The documents of a batch, prepared once for all layers by :func:`pack_documents`.

    :param ids: (batch, seq), which document each token is of.
    :param prepared: ``AttentionPattern.mask_key`` -> what the backend made of them, such as FlexAttention's
        ``BlockMask``.
    """

    ids: torch.Tensor
    prepared: Mapping[Any, Any]


Documents = torch.Tensor | PackedDocuments | None
"""What attention takes: ids of (batch, seq), the same prepared, or ``None`` for one document per row."""


def pack_documents(
    ids: torch.Tensor | None,
    patterns: Sequence[AttentionPattern] = (CAUSAL,),
    *,
    backend: AttentionBackend | None = None,
) -> Documents:
    """Prepare documents for attention, once per forward rather than in each layer.

    On CUDA with Triton this makes the tiles for FlexAttention (Dong et al., 2024); nothing of (seq, seq) is
    made, and the host waits for nothing. Elsewhere the ids are all that attention needs.

    :param ids: (batch, seq), the tokens of one document being neighbours.
    :param patterns: what the layers attend to.
    :param backend: the one that a run names.
    """
    if ids is None:
        return None
    usual = attention_tiles if takes_tiles(ids.device) else None
    prepare = usual if backend is None else backend.prepare
    if prepare is None:
        return ids
    prepared = {}
    for pattern in patterns:
        if pattern.mask_key not in prepared:
            prepared[pattern.mask_key] = prepare(pattern, ids)
    return PackedDocuments(ids, prepared)


def takes_tiles(device: torch.device) -> bool:
    """Whether attention there is FlexAttention, over tiles, where a run names no backend."""
    return device.type == "cuda" and has_flex_attention()


@cache
def has_flex_attention() -> bool:
    """Whether FlexAttention has the compiler that its kernels need."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def attention_tiles(pattern: AttentionPattern, ids: torch.Tensor) -> Any:
    """The ``BlockMask`` of a pattern.

    Equal to ``create_block_mask`` of the same rule, and made from each tile's first and last token alone, in
    memory of (seq / 128)² instead of seq².

    :param ids: (batch, seq), the tokens of one document being neighbours.
    """
    from torch.nn.attention.flex_attention import BlockMask

    seq = ids.shape[1]
    regions = pattern.regions(ids)
    assert regions is not None
    changes = torch.nn.functional.pad(regions[:, 1:] != regions[:, :-1], (1, 0))
    runs = changes.cumsum(dim=-1)  # documents, or chunks of them, in the order of the row
    first = runs[:, ::BLOCK]
    last = torch.cat((runs[:, BLOCK - 1 :: BLOCK], runs[:, -1:]), dim=1)[:, : first.shape[1]]
    tile = torch.arange(first.shape[1], device=ids.device)
    back = tile[:, None] - tile  # how many tiles the keys are before the queries
    reached = (last[:, None, :] >= first[:, :, None]) & (last[:, :, None] >= first[:, None, :])
    one_run = torch.minimum(first[:, :, None], first[:, None, :]) == torch.maximum(
        last[:, :, None], last[:, None, :]
    )
    # The last tile may hang over the end.
    whole = one_run & ((torch.maximum(tile[:, None], tile) + 1) * BLOCK <= seq)
    if pattern.causal:
        reached, whole = reached & (back >= 0), whole & (back > 0)
    if pattern.window is not None:
        # From a tile's first query to the last key of an earlier tile, and from its last query to the first.
        reached = reached & (back * BLOCK - (BLOCK - 1) < pattern.window)
        whole = whole & (back * BLOCK + (BLOCK - 1) < pattern.window)

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        same = regions[batch, query] == regions[batch, key]
        if pattern.causal:
            same = same & (query >= key)
        return same if pattern.window is None else same & (query - key < pattern.window)

    return BlockMask.from_kv_blocks(
        *_ordered(reached & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(seq, seq),
    )


def _ordered(tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many key tiles each query tile has, and which, those that count first.

    :param tiles: (batch, query tiles, key tiles), bool; :returns: int32, with a dim for heads after batch.
    """
    number = tiles.sum(dim=-1, dtype=torch.int32)
    which = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return number[:, None], which[:, None]


def flex_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tiles: Any,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """FlexAttention, compiled by itself where nothing around it is.

    :param q: (batch, n_heads, seq, head_dim); ``k`` and ``v``: (batch, n_kv_heads, seq, head_dim).
    :param scale: and ``softcap`` and ``sinks``, (n_heads,): see :class:`~hekaton_blocks.AttentionPattern`.
    """
    from torch.nn.attention import flex_attention as flex

    attend: Any = flex.flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    options = {"block_mask": tiles, "scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if softcap is not None:
        options["score_mod"] = lambda score, *at: softcap * torch.tanh(score / softcap)
    if sinks is None:
        plain: torch.Tensor = attend(q, k, v, **options)
        return plain
    out, more = attend(q, k, v, **options, return_aux=flex.AuxRequest(lse=True))
    with_sinks: torch.Tensor = out * sink_weight(more.lse, sinks).unsqueeze(-1).to(out.dtype)
    return with_sinks


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # As an operator that recomputation by operator sees, and can keep the result of.
    options = {"wrap_inductor_compiled_regions": True}
    return torch.compile(flex_attention, dynamic=False, options=options)
