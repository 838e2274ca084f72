"""Cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from hekaton.cross_entropy import chunked_cross_entropy
from hekaton.objective import Batch, BatchTensor, ObjectiveContext

if TYPE_CHECKING:
    from hekaton.draws import Draw

IGNORE_INDEX = -100
"""Target id that does not count."""


class NextToken:
    """Cross-entropy of the next token, computed in float32 (in float64 where the model is)."""

    weights: ClassVar[Mapping[str, float]] = {"next_token": 1.0}
    likelihood: ClassVar[str] = "next_token"

    def __init__(self, *, needs_positions: bool = False) -> None:
        """:param needs_positions: give the model positions where documents are not packed apart, too."""
        self._needs_positions = needs_positions

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """``tokens``; and where documents are packed apart ``positions``, which restart at each document, and
        ``documents``, which number them. Under context parallel a rank's tokens and positions are its part
        of the sequence; ``documents`` is always that of the whole row."""
        ids: Any = {"shape": (seq_len,), "dtype": torch.long}
        return (
            BatchTensor(name="tokens", **ids, sequence=0, first_stage=True),
            BatchTensor(name="positions", **ids, sequence=0, optional=not self._needs_positions),
            BatchTensor(name="documents", **ids, optional=True),
        )

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        """``labels``: the next token of each, ``IGNORE_INDEX`` where it does not count."""
        return (BatchTensor(name="labels", shape=(seq_len,), dtype=torch.long, sequence=0),)

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        tokens = batch["tokens"]
        inputs = {"tokens": tokens}
        if "positions" in batch:
            inputs["positions"] = batch["positions"]
            inputs["documents"] = (batch["positions"] == 0).cumsum(dim=-1)
        elif self._needs_positions:
            inputs["positions"] = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        return inputs, {"labels": batch["labels"]}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        return {"next_token": (targets["labels"] != IGNORE_INDEX).sum()}

    def loss(self, outputs: torch.Tensor, targets: Batch) -> dict[str, torch.Tensor]:
        """:param outputs: logits, (batch, seq, vocab); :param targets: ``labels``, (batch, seq)"""
        return {"next_token": self._loss(outputs.flatten(0, 1), targets["labels"].flatten())}

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        half = logits.dtype in (torch.bfloat16, torch.float16)
        if half and type(logits) is torch.Tensor and not torch.compiler.is_compiling():
            return chunked_cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")


def next_token(section: Any, context: ObjectiveContext) -> NextToken:
    return NextToken(needs_positions=context.sequence_is_cut)
