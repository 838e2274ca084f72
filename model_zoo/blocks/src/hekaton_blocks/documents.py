"""Which tokens may see each other where documents are packed into rows, as attention kernels take it."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch

BLOCK = 128
"""Side of the tiles, in tokens, that the kernel skips, masks or computes whole."""


class PackedDocuments(NamedTuple):
    """The documents of a batch, prepared once for all layers by :func:`pack_documents`.

    :param ids: (batch, seq), which document each token is of.
    :param tiles: FlexAttention's ``BlockMask``, ``None`` where FlexAttention is not used.
    """

    ids: torch.Tensor
    tiles: Any


Documents = torch.Tensor | PackedDocuments | None
"""What attention takes: ids of (batch, seq), the same prepared, or ``None`` for one document per row."""


def pack_documents(ids: torch.Tensor | None) -> Documents:
    """Prepare documents for attention, once per forward rather than in each layer.

    On CUDA with Triton this makes the tiles for FlexAttention (Dong et al., 2024); nothing of (seq, seq) is
    made, and the host waits for nothing. Elsewhere the ids are all that attention needs.

    :param ids: (batch, seq), the tokens of one document being neighbours.
    """
    if ids is None or not (ids.device.type == "cuda" and has_flex_attention()):
        return ids
    return PackedDocuments(ids, document_tiles(ids))


@cache
def has_flex_attention() -> bool:
    """Whether FlexAttention has the compiler that its kernels need."""
    from importlib.util import find_spec

    return find_spec("triton") is not None


def document_tiles(ids: torch.Tensor) -> Any:
    """The ``BlockMask`` of causal attention inside documents.

    Equal to ``create_block_mask`` of the same rule, and made from each tile's first and last document alone,
    in memory of (seq / 128)² instead of seq².

    :param ids: (batch, seq), the tokens of one document being neighbours.
    """
    from torch.nn.attention.flex_attention import BlockMask

    seq = ids.shape[1]
    changes = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0))
    runs = changes.cumsum(dim=-1)  # documents in the order of the row
    first = runs[:, ::BLOCK]
    last = torch.cat((runs[:, BLOCK - 1 :: BLOCK], runs[:, -1:]), dim=1)[:, : first.shape[1]]
    tile = torch.arange(first.shape[1], device=ids.device)
    within_row = (tile[:, None] + 1) * BLOCK <= seq  # the last tile may hang over the end
    earlier = (tile[:, None] > tile) & within_row
    reached = (tile[:, None] >= tile) & (last[:, None, :] >= first[:, :, None])
    whole = earlier & (first[:, None, :] == last[:, :, None])

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (ids[batch, query] == ids[batch, key])

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
    enable_gqa: bool = False,
) -> torch.Tensor:
    """FlexAttention, compiled by itself where nothing around it is.

    :param q: (batch, n_heads, seq, head_dim); ``k`` and ``v``: (batch, n_kv_heads, seq, head_dim).
    """
    from torch.nn.attention import flex_attention as flex

    attend: Any = flex.flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    out: torch.Tensor = attend(q, k, v, block_mask=tiles, scale=scale, enable_gqa=enable_gqa)
    return out


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # As an operator that recomputation by operator sees, and can keep the result of.
    options = {"wrap_inductor_compiled_regions": True}
    return torch.compile(flex_attention, dynamic=False, options=options)
