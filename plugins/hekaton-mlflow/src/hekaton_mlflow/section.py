"""The configuration section of this plugin."""

from __future__ import annotations

from typing import ClassVar

from hekaton.config import SectionModel
from hekaton.config.base import AtResumeMeaning


class MlflowSection(SectionModel):
    """Where MLflow keeps a run."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "each process logs for itself"

    tracking_uri: str = ""
    """Address of a tracking server or of a store. Empty takes ``MLFLOW_TRACKING_URI``, or else files in
    ``mlruns`` of the run folder."""
    experiment: str = "hekaton"
    """Experiment that the run belongs to; it is made where it is not there."""
    name: str = ""
    """Name of the run; empty lets MLflow choose one."""
