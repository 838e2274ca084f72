"""The configuration section of this plugin."""

from __future__ import annotations

from typing import ClassVar, Literal

from hekaton.config import SectionModel
from hekaton.config.base import AtResumeMeaning


class WandbSection(SectionModel):
    """Where Weights & Biases keeps a run. What is left empty it takes from its own variables
    (``WANDB_PROJECT``, ``WANDB_ENTITY``, ...)."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "each process logs for itself"

    mode: Literal["", "online", "offline"] = ""
    """``"online"`` sends metrics as they come; ``"offline"`` writes them to the run folder, from where
    ``wandb sync`` sends them later. Empty takes ``WANDB_MODE``, or online."""
    project: str = ""
    """Project that the run belongs to."""
    entity: str = ""
    """User or team that the project belongs to."""
    name: str = ""
    """Name of the run, as its page shows it."""
    group: str = ""
    """Group of runs that are shown together. A run that starts again from an earlier step while it is offline
    is in a group with the one that it continues."""
    tags: list[str] = []  # noqa: RUF012, pydantic copies it
    """Tags of the run."""
