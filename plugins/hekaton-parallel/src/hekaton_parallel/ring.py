"""Ring attention: exact attention, a part of the keys and values at a time, with its backward.

Where there are no documents to keep apart, over flash kernels in torch's own loop, which merges in float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from hekaton_blocks import AttentionPattern
from hekaton_blocks.sinks import bend, grad_of_sinks

_aten = torch.ops.aten
_KERNELS = {
    "cpu": (
        {torch.float32, torch.bfloat16},
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
        (),
    ),
    "cuda": (
        {torch.float16, torch.bfloat16},
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_backward.default,
        ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset"),
    ),
}
"""Device -> dtypes, flash attention, its backward, and what that takes of the other results of the former."""


def has_flash(q: torch.Tensor) -> bool:
    """Whether :class:`FlashRingAttention` takes queries of this device, dtype and head_dim."""
    device, head_dim = q.device.type, q.shape[-1]
    fits = device != "cuda" or (head_dim % 8 == 0 and head_dim <= 256)
    return device in _KERNELS and q.dtype in _KERNELS[device][0] and fits


class FlashRingAttention(torch.autograd.Function):
    """Causal attention over keys and values that travel round a process group, a flash kernel per part.

    ``apply(q, k, v, scale, load_balance, group)``: ``q`` (batch, heads, n, head_dim), ``k`` and ``v`` (batch,
    kv_heads, n, head_dim), ``scale`` of the scores or ``None``, each rank's part in the order of
    ``head_tail`` or, without ``load_balance``, contiguous. The loop is torch's
    (``torch.distributed.tensor.experimental``).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float | None,
        load_balance: bool,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        from torch.distributed.tensor.experimental._context_parallel import _attention as loop

        _, kernel, _, kept = _KERNELS[q.device.type]

        def attend(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
        ) -> tuple[torch.Tensor, ...]:
            whole: tuple[torch.Tensor, ...] = kernel(
                query, _per_query_head(key, query), _per_query_head(value, query), **options
            )
            return whole

        with _loop_options(load_balance):
            out, lse, *others = loop._templated_ring_attention(
                group, 2, attend, q, k, v, is_causal=True, dropout_p=0.0, scale=scale
            )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.kept = dict(zip(kept, others, strict=False))
        ctx.scale, ctx.load_balance, ctx.group = scale, load_balance, group
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from torch.distributed.tensor.experimental._context_parallel import _attention as loop

        q, k, v, out, lse = ctx.saved_tensors
        _, _, kernel, _ = _KERNELS[q.device.type]

        def attend(
            *, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
        ) -> tuple[torch.Tensor, ...]:
            keys, values = _per_query_head(key, query), _per_query_head(value, query)
            of_q, of_k, of_v, *_ = kernel(query=query, key=keys, value=values, **options)
            return of_q, _per_kv_head(of_k, key), _per_kv_head(of_v, value)

        with _loop_options(ctx.load_balance):
            of_inputs = loop._templated_ring_attention_backward(
                ctx.group, 2, attend, grads[0], "grad_out", q, k, v, out, lse, True, dropout_p=0.0,
                scale=ctx.scale, **ctx.kept,
            )  # fmt: skip
        return *of_inputs, None, None, None


@contextlib.contextmanager
def _loop_options(load_balance: bool) -> Iterator[None]:
    """Torch's loop takes these from a global."""
    from torch.distributed.tensor.experimental._context_parallel._attention import _cp_options, _RotateMethod

    before = _cp_options.enable_load_balance, _cp_options.rotate_method
    _cp_options.enable_load_balance, _cp_options.rotate_method = load_balance, _RotateMethod.ALL_TO_ALL
    try:
        yield
    finally:
        _cp_options.enable_load_balance, _cp_options.rotate_method = before


class RingAttention(torch.autograd.Function):
    """Attention as a pattern describes it, over keys and values that travel round a process group.

    ``apply(q, k, v, sinks, pattern, documents, parts, group)``: ``q`` (batch, heads, n, head_dim), ``k``
    (batch, kv_heads, n, head_dim), ``v`` (batch, kv_heads, n, v_head_dim), ``sinks`` (heads,) or ``None``,
    ``documents`` (batch, seq) or ``None``, ``parts`` the positions in the sequence that each rank of
    ``group`` holds. Block by block, with the scores of one block in memory at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor | None,
        pattern: AttentionPattern,
        documents: torch.Tensor | None,
        parts: tuple[torch.Tensor, ...],
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        rank, degree = group.rank(), group.size()
        scale = q.shape[-1] ** -0.5 if pattern.scale is None else pattern.scale
        sizes = (k.shape[-1], v.shape[-1])
        out = q.new_zeros(*q.shape[:3], v.shape[-1])
        lse = q.new_full((*q.shape[:3], 1), -math.inf)
        block = torch.cat((k, v), dim=-1)
        for step in range(degree):
            owner = (rank - step) % degree
            if step:
                block = _rotate(block, group)
            keys, values = block.split(sizes, dim=-1)
            scores = _scores(q, keys, scale, pattern.softcap)
            scores = scores.masked_fill(~pattern.mask(documents, parts[rank], parts[owner]), -math.inf)
            block_lse = scores.logsumexp(dim=-1, keepdim=True)
            merged = torch.logaddexp(lse, block_lse)
            out = out * _weight(lse, merged) + _weight(scores, merged) @ _per_query_head(values, q)
            lse = merged
        if sinks is not None:
            merged = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None, None])
            out, lse = out * _weight(lse, merged), merged
        ctx.save_for_backward(q, k, v, sinks, documents, out, lse, *parts)
        ctx.group, ctx.scale, ctx.pattern = group, scale, pattern
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        q, k, v, sinks, documents, out, lse, *parts = ctx.saved_tensors
        group, scale, pattern = ctx.group, ctx.scale, ctx.pattern
        sizes = 2 * (k.shape[-1], v.shape[-1])
        rank, degree = group.rank(), group.size()
        delta = (grad * out).sum(dim=-1, keepdim=True)
        grad_q = torch.zeros_like(q)
        # The last two are their gradients.
        block = torch.cat((k, v, torch.zeros_like(k), torch.zeros_like(v)), dim=-1)
        for step in range(degree):
            owner = (rank - step) % degree
            if step:
                block = _rotate(block, group)
            of_owner = block.split(sizes, dim=-1)
            keys, values = _per_query_head(of_owner[0], q), _per_query_head(of_owner[1], q)
            allowed = pattern.mask(documents, parts[rank], parts[owner])
            scores = _scores(q, of_owner[0], scale, pattern.softcap)
            weights = _weight(scores.masked_fill(~allowed, -math.inf), lse)
            grad_scores = weights * (grad @ values.mT - delta) * scale
            if pattern.softcap is not None:
                grad_scores *= 1 - (scores / pattern.softcap).square()  # the derivative of tanh
            grad_q += grad_scores @ keys
            of_owner[2].add_(_per_kv_head(grad_scores.mT @ q, k))
            of_owner[3].add_(_per_kv_head(weights.mT @ grad, v))
        if degree > 1:
            block = _rotate(block, group)
        grad_k, grad_v = block.split(sizes, dim=-1)[2:]
        of_sinks = None if sinks is None else grad_of_sinks(grad, out, lse.squeeze(-1), sinks)
        return grad_q, grad_k, grad_v, of_sinks, None, None, None, None


def _scores(q: torch.Tensor, k: torch.Tensor, scale: float, softcap: float | None) -> torch.Tensor:
    """Scaled scores, bent where there is a softcap: (batch, heads, n, n)."""
    scores = q @ _per_query_head(k, q).mT * scale
    return scores if softcap is None else bend(scores, softcap)


def _weight(scores: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """exp(scores - lse), 0 where there is nothing to look at yet."""
    return torch.where(scores == -math.inf, 0.0, torch.exp(scores - lse))


def _per_query_head(x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)


def _per_kv_head(x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (k.shape[1], -1)).sum(dim=2)


def _rotate(block: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Pass a block to the next rank, and take the previous one's."""
    rank, degree = group.rank(), group.size()
    received = torch.empty_like(block)
    operations = [
        dist.P2POp(dist.isend, block, group=group, group_peer=(rank + 1) % degree),
        dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % degree),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received
