"""Attention whose softmax is another one: with a sink, a logit more in each head, which has no value; and
with scores that are bent."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def attend_with_sinks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attend, with the sinks' weights lost.

    :param q: (batch, n_heads, n, head_dim); ``k`` and ``v``: (batch, n_kv_heads, m, head_dim)
    :param sinks: (n_heads,), logits.
    :param mask: bool, (n, m) or (batch, 1, n, m); ``None`` for all keys, or where ``causal`` those before.
    :returns: (batch, n_heads, n, head_dim)
    """
    if q.device.type == "cpu" and not torch.compiler.is_compiling():
        group = q.shape[1] // k.shape[1]
        k, v = (x if group == 1 else x.repeat_interleave(group, dim=1) for x in (k, v))
        bias = None if mask is None else _as_bias(mask, q.dtype)
        out: torch.Tensor = _FlashWithSinks.apply(q, k, v, sinks, bias, causal and mask is None, scale)
        return out
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = mask.tril() if causal else mask
    # A key and value of zeros, whose score is the sink.
    bias = _as_bias(mask, q.dtype).expand(mask.shape[0] if mask.dim() == 4 else 1, q.shape[1], -1, -1)
    column = sinks.to(q.dtype)[:, None, None].expand(*bias.shape[:3], 1)
    bias = torch.cat((bias, column), dim=-1)
    k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def attend_with_softcap(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sinks: torch.Tensor | None,
    *,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float,
) -> torch.Tensor:
    """Attend with scores that are bent, which no kernel of torch but FlexAttention can: all of them are in
    memory, (batch, n_heads, n, m). For the parameters see :func:`attend_with_sinks`.
    """
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = mask.tril() if causal else mask
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = bend(q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale), softcap)
    scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(v.dtype)[..., : k.shape[2]] @ v


def bend(scores: torch.Tensor, softcap: float) -> torch.Tensor:
    """``softcap * tanh(scores / softcap)``, see :class:`~hekaton_blocks.AttentionPattern`."""
    return softcap * torch.tanh(scores / softcap)


def _as_bias(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def sink_weight(lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """What is left for the keys of each query: ``exp(lse) / (exp(lse) + exp(sink))``.

    :param lse: (batch, n_heads, n), log-sum-exp of the scores; it needs its gradient, as that of the queries
        and keys passes through it.
    """
    return torch.sigmoid(lse - sinks.to(lse.dtype)[:, None])


class _FlashWithSinks(torch.autograd.Function):
    """The CPU's flash kernel, whose log-sum-exp has no gradient: so its backward is given that of keys and
    sink together, which makes the weights, and with them every gradient, those of the longer softmax."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        sinks: torch.Tensor,
        bias: torch.Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        out, of_keys = _flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        lse = torch.logaddexp(of_keys, sinks.to(of_keys.dtype)[:, None])
        out = (out * (of_keys - lse).exp().unsqueeze(-1)).to(q.dtype)
        ctx.save_for_backward(q, k, v, sinks, bias, out, lse)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, sinks, bias, out, lse = ctx.saved_tensors
        of_inputs = _flash_backward(
            grads[0], q, k, v, out, lse, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale
        )
        return *of_inputs, grad_of_sinks(grads[0], out, lse, sinks), None, None, None


def grad_of_sinks(
    grad: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor
) -> torch.Tensor:
    """The gradient of the sinks, whose weight in the softmax only takes from the others'.

    :param grad: of ``out``, (batch, n_heads, n, head_dim).
    :param lse: (batch, n_heads, n), log-sum-exp of scores and sink.
    :returns: (n_heads,)
    """
    weight = (sinks.to(lse.dtype)[:, None] - lse).exp()
    delta = (grad * out).sum(dim=-1, dtype=lse.dtype)
    return -(weight * delta).sum(dim=(0, 2)).to(sinks.dtype)
