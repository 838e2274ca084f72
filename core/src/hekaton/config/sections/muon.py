"""The section of the optimizer Muon."""

from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from hekaton.config.base import AtResumeMeaning, SectionModel


class MuonSection(SectionModel):
    """How ``optimizer.name = "Muon"`` updates matrices; ``[optimizer]`` has rate and decay."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of the running mean of gradients, per step."""
    nesterov: bool = True
    """Mix the step's own gradient into the running mean, as Nesterov does."""
    ns_steps: PositiveInt = 5
    """Newton-Schulz iterations that make an update orthogonal."""
