"""The evaluation: numbers by which a run's model is judged between its steps."""

from __future__ import annotations

import torch
import torch.distributed as dist

from hekaton.assembly import Assembled
from hekaton.scaffold.templates.settings import JudgementSection


class LargestWeight:
    """The largest weight of the model."""

    def __init__(self, every: int, assembled: Assembled) -> None:
        self.every = every
        self.parts = assembled.parts
        self.device = assembled.process.device

    def due(self, step: int) -> bool:
        """Whether it is asked for after this step; the same on all ranks."""
        return self.every > 0 and step % self.every == 0

    def __call__(self) -> dict[str, float]:
        """Numbers by name, the same on all ranks: each has a part of the model."""
        largest = torch.zeros((), device=self.device)
        for parameter in (one.detach() for part in self.parts for one in part.parameters()):
            local = getattr(parameter, "to_local", lambda one=parameter: one)()
            if local.numel():
                largest = torch.maximum(largest, local.abs().max().to(largest))
        if dist.is_initialized():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return {"largest_weight": largest.item()}


def build(section: JudgementSection, assembled: Assembled) -> LargestWeight:
    """:param assembled: what the run is made of."""
    return LargestWeight(section.every, assembled)
