"""Cross-entropy of logits in half precision, without a copy of all of them in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

CHUNK_NUMEL = 2**27
"""Logits that are in float32 at a time: half a gibibyte."""


def chunked_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, ignore_index: int) -> torch.Tensor:
    """Sum of the cross-entropy, computed in float32 a few rows at a time, forward and backward.

    At most the logits, their gradient in the same dtype, and a chunk are in memory; ``F.cross_entropy`` on
    logits that were cast keeps two copies in float32 beside those.

    :param logits: (tokens, vocab), bfloat16 or float16; :param targets: (tokens,)
    :returns: a float32 scalar.
    """
    total: torch.Tensor = _ChunkedCrossEntropy.apply(logits, targets, ignore_index)  # type: ignore[no-untyped-call]
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
        counted = (targets != ignore_index)[:, None]
        targets = torch.where(counted, targets[:, None], 0)
        log_sums = torch.empty(len(logits), 1, dtype=torch.float32, device=logits.device)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for rows in _chunks(logits):
            chunk = logits[rows].float()
            log_sums[rows] = chunk.logsumexp(dim=-1, keepdim=True)
            total += ((log_sums[rows] - chunk.gather(1, targets[rows])) * counted[rows]).sum()
        ctx.save_for_backward(logits, targets, counted, log_sums)
        return total

    @staticmethod
    def backward(ctx: Any, of_total: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, targets, counted, log_sums = ctx.saved_tensors
        grad = torch.empty_like(logits)
        minus_one = log_sums.new_full((), -1.0)
        for rows in _chunks(logits):
            chunk = logits[rows].float().sub_(log_sums[rows]).exp_()
            chunk.scatter_add_(1, targets[rows], minus_one.expand(len(chunk), 1))
            grad[rows] = chunk.mul_(counted[rows] * of_total)
        return grad, None, None


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_NUMEL // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
