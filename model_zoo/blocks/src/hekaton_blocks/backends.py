"""The ways in which attention is computed, by the names with which a run chooses one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from hekaton_blocks.documents import attention_tiles, flex_attention, has_flex_attention
from hekaton_blocks.pattern import AttentionPattern


@dataclass(frozen=True, kw_only=True)
class AttentionBackend:
    """One way to compute attention; a :class:`hekaton.parallel.context.AttentionBackend`.

    :param prepare: ``prepare(pattern, ids)`` of (batch, seq), once per forward; what it gives, ``attend`` is
        given. ``None`` where there is nothing to prepare, and ``attend`` is not called.
    :param attend: ``attend(q, k, v, pattern, prepared, sinks)``, of whole rows.
    """

    supports: tuple[str, ...]
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    missing: Callable[[], str] = lambda: ""
    prepare: Callable[[AttentionPattern, torch.Tensor], Any] | None = None
    attend: Callable[..., torch.Tensor] | None = None


class Runs(NamedTuple):
    """Stretches of neighbouring tokens that see each other, those of all rows in one list.

    :param starts: (n + 1,), int32: where each begins, and last the number of all tokens.
    :param longest: none is longer.
    """

    starts: torch.Tensor
    longest: int


def runs(pattern: AttentionPattern, ids: torch.Tensor) -> Runs:
    """The documents of a batch, or their chunks, as variable-length attention takes them. Their number
    depends on values: the host waits for the device.

    :param ids: (batch, seq), the tokens of one document being neighbours.
    """
    regions = pattern.regions(ids)
    assert regions is not None
    begins = F.pad(regions[:, 1:] != regions[:, :-1], (1, 0), value=True)
    starts = F.pad(begins.flatten().nonzero().flatten(), (0, 1), value=ids.numel())
    return Runs(starts.to(torch.int32), min(pattern.chunk or ids.shape[1], ids.shape[1]))


def attend_to_runs(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    prepared: Runs,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Variable-length flash attention, over all rows as one. For the parameters see
    :class:`~hekaton_blocks.DocumentAttention`."""
    from torch.nn.attention.varlen import varlen_attn

    assert sinks is None, "refused before: see supports"
    width = v.shape[-1]
    heads = (q, k, F.pad(v, (0, q.shape[-1] - width)))  # the kernel takes heads of one size
    flat = [x.transpose(1, 2).flatten(0, 1) for x in heads]
    starts, longest = prepared
    before = -1 if pattern.window is None else pattern.window - 1
    out: Any = varlen_attn(
        *flat, starts, starts, longest, longest, scale=pattern.scale, enable_gqa=q.shape[1] != k.shape[1],
        window_size=(before, 0 if pattern.causal else -1),
    )  # fmt: skip
    rows: torch.Tensor = out.unflatten(0, (q.shape[0], q.shape[2])).transpose(1, 2)[..., :width]
    return rows


def _takes_windows() -> bool:
    """Whether torch's variable-length attention has windows and grouped heads; not so before 2.13."""
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _attend_over_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pattern: AttentionPattern,
    prepared: Any,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    return flex_attention(q, k, v, prepared, scale=pattern.scale, softcap=pattern.softcap, sinks=sinks)


BACKENDS: Mapping[str, AttentionBackend] = {
    "sdpa": AttentionBackend(
        supports=("bidirectional", "window", "chunks", "sinks", "softcap", "positions"),
    ),
    "flex": AttentionBackend(
        supports=("bidirectional", "window", "chunks", "sinks", "softcap"),
        devices=("cuda",),
        dtypes=("float32", "bfloat16", "float16"),
        missing=lambda: "" if has_flex_attention() else "Triton",
        prepare=attention_tiles,
        attend=_attend_over_tiles,
    ),
    "varlen": AttentionBackend(
        supports=("bidirectional", "window", "chunks"),
        devices=("cuda",),
        dtypes=("bfloat16", "float16"),
        missing=lambda: "" if _takes_windows() else "torch 2.13",
        prepare=runs,
        attend=attend_to_runs,
    ),
}
"""``sdpa``: torch's ``scaled_dot_product_attention`` and what that is made of, anywhere. ``flex``:
FlexAttention (Dong et al., 2024), which skips what the pattern leaves out. ``varlen``: FlashAttention (Dao,
2023) over documents of different lengths; for sinks torch has no gradient of its log-sum-exp."""
