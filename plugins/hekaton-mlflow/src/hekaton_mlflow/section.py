"""The configuration section of this plugin."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator

from hekaton.config import SectionModel
from hekaton.config.base import AtResumeMeaning

SCHEMES = (
    "file", "http", "https", "databricks", "databricks-uc", "uc", "sqlite", "postgresql", "mysql", "mssql",
)  # fmt: skip
"""Of addresses that MLflow has a store for."""


def _address(uri: str) -> str:
    scheme, colon, _ = uri.partition("://")
    if colon and scheme.partition("+")[0] not in SCHEMES:
        raise ValueError(f"MLflow has no store for '{scheme}://', but for {', '.join(SCHEMES)}")
    return uri


class MlflowSection(SectionModel):
    """Where MLflow keeps a run."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "each process logs for itself"

    tracking_uri: Annotated[str, AfterValidator(_address)] = ""
    """Address of a tracking server or of a store. Empty takes ``MLFLOW_TRACKING_URI``, or else files in
    ``mlruns`` of the run folder."""
    experiment: str = "hekaton"
    """Experiment that the run belongs to; it is made where it is not there."""
    name: str = ""
    """Name of the run; empty lets MLflow choose one."""
