"""Cross-entropy of logits in half precision, without a copy of all of them in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

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
        ctx.save_for_backward(logits, targets)
        ctx.ignore_index = ignore_index
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for rows in _chunks(logits):
            total += F.cross_entropy(
                logits[rows].float(), targets[rows], ignore_index=ignore_index, reduction="sum"
            )
        return total

    @staticmethod
    def backward(ctx: Any, of_total: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        counted = (targets != ctx.ignore_index)[:, None]
        targets = torch.where(counted, targets[:, None], 0)
        scales = counted * of_total
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            chunk = F.softmax(logits[rows].float(), dim=-1)
            chunk.scatter_add_(1, targets[rows], chunk.new_full((), -1.0).expand(len(chunk), 1))
            torch.mul(chunk, scales[rows], out=grad[rows])
        return grad, None, None


def _chunks(logits: torch.Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_NUMEL // logits.shape[1])
    return (slice(start, start + rows) for start in range(0, len(logits), rows))
