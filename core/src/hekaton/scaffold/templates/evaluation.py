"""The evaluation: numbers by which a run's model is judged between its steps."""

from __future__ import annotations

from hekaton.assembly import Assembled
from hekaton.scaffold.templates.settings import JudgementSection


class LargestWeight:
    """The largest weight of this rank's parts of the model."""

    def __init__(self, every: int, assembled: Assembled) -> None:
        self.every = every
        self.parts = assembled.parts

    def due(self, step: int) -> bool:
        """Whether it is asked for after this step; the same on all ranks."""
        return self.every > 0 and step % self.every == 0

    def __call__(self) -> dict[str, float]:
        """Numbers by name; those of rank 0 are logged."""
        parameters = (one.detach() for part in self.parts for one in part.parameters())
        local = (getattr(one, "to_local", lambda one=one: one)() for one in parameters)
        return {"largest_weight": max((float(one.abs().max()) for one in local if one.numel()), default=0.0)}


def build(section: JudgementSection, assembled: Assembled) -> LargestWeight:
    """:param assembled: what the run is made of."""
    return LargestWeight(section.every, assembled)
