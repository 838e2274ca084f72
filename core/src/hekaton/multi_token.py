"""The objective ``multi_token``: the next token, and from the layer in ``mtp_layers`` the one after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hekaton.loss import IGNORE_INDEX, NextToken
from hekaton.objective import Batch, BatchTensor, ObjectiveContext

if TYPE_CHECKING:
    from hekaton.draws import Draw

SECOND = "second_token"


class MultiToken(NextToken):
    """Cross-entropy of the next token, and of the one after it as a term of its own (DeepSeek V3, 2.2).

    Only tokens whose document goes on for two more count for the second term.
    """

    def __init__(self, *, weight: float, needs_positions: bool = False) -> None:
        """:param weight: of the second term."""
        super().__init__(needs_positions=needs_positions)
        self.weights = {"next_token": 1.0, SECOND: weight}  # type: ignore[misc]

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """Those of ``next_token``, and ``next_tokens``: the token after each, any where there is none."""
        ids = BatchTensor(name="next_tokens", shape=(seq_len,), dtype=torch.long, sequence=0)
        return (*super().inputs(seq_len), ids)

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        """``labels``, and ``second_labels``: the token after the next of each."""
        second = BatchTensor(name="second_labels", shape=(seq_len,), dtype=torch.long, sequence=0)
        return (*super().targets(seq_len), second)

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        inputs, targets = super().prepare(batch, draw)
        labels = targets["labels"]
        second = torch.full_like(labels, IGNORE_INDEX)
        second[:, :-1] = labels[:, 1:].masked_fill(labels[:, :-1] == IGNORE_INDEX, IGNORE_INDEX)
        if "positions" in batch:  # a row of several documents: the next token begins another one
            second[:, :-1].masked_fill_(batch["positions"][:, 1:] == 0, IGNORE_INDEX)
        next_tokens = labels.masked_fill(labels == IGNORE_INDEX, 0)
        return inputs | {"next_tokens": next_tokens}, targets | {"second_labels": second}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        return super().count(targets) | {SECOND: (targets["second_labels"] != IGNORE_INDEX).sum()}

    def loss(self, outputs: Any, targets: Batch) -> dict[str, torch.Tensor]:
        """:param outputs: two tensors of logits, (batch, seq, vocab) each."""
        first, second = outputs
        labels = targets["second_labels"].flatten()
        return super().loss(first, targets) | {SECOND: self._loss(second.flatten(0, 1), labels)}


def multi_token(section: Any, context: ObjectiveContext) -> MultiToken:
    return MultiToken(weight=section.weight, needs_positions=context.sequence_is_cut)
