"""The objective: what the model is given, what the loss needs, and the loss as a sum and a count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hekaton.draws import Draw
from hekaton.loss import IGNORE_INDEX
from hekaton.objective import Batch, BatchTensor, ObjectiveContext
from hekaton.scaffold.templates.settings import ObjectiveSection


class NextTokenLater:
    """Cross-entropy of the next token, of those that are not among the first of their document."""

    weights = {"next_token": 1.0}  # noqa: RUF012

    def __init__(self, first: int) -> None:
        self.first = first

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """What the model is given. Under context parallel a tensor with a ``sequence`` is cut there, and of
        a pipeline the first stage alone is given the tokens."""
        shape, dtype = (seq_len,), torch.long
        return [
            BatchTensor(name="tokens", shape=shape, dtype=dtype, sequence=0, first_stage=True),
            BatchTensor(name="positions", shape=shape, dtype=dtype, sequence=0),
            BatchTensor(name="documents", shape=shape, dtype=dtype),
        ]

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        """What the loss needs."""
        return [BatchTensor(name="labels", shape=(seq_len,), dtype=torch.long, sequence=0)]

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        """Inputs and targets of the rows of a batch.

        :param batch: what the row maker wrote, (rows, seq_len) each; :param draw: random numbers.
        """
        tokens = batch["tokens"]
        whole = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        positions = batch.get("positions", whole)
        labels = batch["labels"].masked_fill(positions < self.first, IGNORE_INDEX)
        documents = (positions == 0).cumsum(dim=-1)
        return {"tokens": tokens, "positions": positions, "documents": documents}, {"labels": labels}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        """What each term is a mean over, of these rows; counts of all ranks are added up."""
        return {"next_token": (targets["labels"] != IGNORE_INDEX).sum()}

    def loss(self, outputs: torch.Tensor, targets: Batch) -> dict[str, torch.Tensor]:
        """Each term as a sum. :param outputs: logits, (batch, seq, vocab)"""
        logits = outputs.flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        labels = targets["labels"].flatten()
        return {"next_token": F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")}


def build(section: ObjectiveSection, context: ObjectiveContext) -> NextTokenLater:
    """:param context: device, precision, degrees and the model's configuration."""
    return NextTokenLater(section.first)
