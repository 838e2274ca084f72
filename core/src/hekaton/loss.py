"""Objectives: what a model is trained for, as a sum over targets divided by their number in the whole step.

The count is asked for before the first forward pass, so that every microbatch's loss is divided by the global
number of targets of the step and gradients are right however the step is cut into ranks and microbatches.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F

from hekaton.cross_entropy import chunked_cross_entropy

IGNORE_INDEX = -100
"""Target id that does not count."""

Batch: TypeAlias = dict[str, torch.Tensor]


class Objective(Protocol):
    """Turns batches into inputs and targets, and outputs into a loss."""

    def prepare(self, batch: Batch) -> tuple[Batch, torch.Tensor]:
        """Split a batch into the keyword arguments of the model's forward, and the targets."""

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        """Number of targets that count, a scalar integer tensor."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Sum of the loss over the targets that count, a scalar."""


class NextToken:
    """Cross-entropy of the next token, computed in float32 (in float64 where the model is)."""

    def prepare(self, batch: Batch) -> tuple[Batch, torch.Tensor]:
        """The model is given ``tokens``, and where documents are packed ``positions``, which restart at each
        document, and ``documents``, which number them. Under context parallel a rank's tokens and positions
        are its part of the sequence; ``documents`` is always that of the whole row."""
        inputs = {"tokens": batch["tokens"]}
        if "positions" in batch:
            inputs["positions"] = batch["positions"]
            inputs["documents"] = (batch["positions"] == 0).cumsum(dim=-1)
        return inputs, batch["labels"]

    def count(self, targets: torch.Tensor) -> torch.Tensor:
        return (targets != IGNORE_INDEX).sum()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """:param outputs: logits, (batch, seq, vocab); :param targets: (batch, seq)"""
        logits, labels = outputs.flatten(0, 1), targets.flatten()
        half = outputs.dtype in (torch.bfloat16, torch.float16)
        if half and type(outputs) is torch.Tensor and not torch.compiler.is_compiling():
            return chunked_cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def next_token(section: Any) -> NextToken:
    return NextToken()
