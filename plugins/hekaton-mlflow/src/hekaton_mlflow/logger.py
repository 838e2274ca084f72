"""Logs metrics to MLflow: a tracking server, or files beside the run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hekaton.external_runs import ExternalRun, configuration_beside, read_external_run
from hekaton_mlflow.section import MlflowSection

os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # since 3.7 files are refused unless it is set
# The client's own limits, 120 s and 7 attempts, would hold a run for minutes when its server is gone.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

KEPT = "mlflow_run.json"
CONTINUED_BY = "hekaton.continued_by"
MOST_METRICS = 1000
"""Metrics that MLflow takes at once."""
MOST_PARAMETERS = 100


class MlflowLogger:
    """One run of MLflow for a run folder, over restarts.

    MLflow keeps every value that it was given for a step. A run that resumes before the last logged step is
    therefore a new run, which begins with what the other one logged up to there; the tag
    ``hekaton.continued_by`` of the other one names it.
    """

    def __init__(self, section: MlflowSection, folder: Path) -> None:
        self._section = section
        self._folder = folder
        local = (folder / "mlruns").absolute().as_uri()
        uri = section.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "") or local
        self._client = MlflowClient(uri)
        self._id = ""

    def resume(self, step: int) -> None:
        before = read_external_run(self._folder / KEPT) if step else None
        if before is not None and before.step <= step:
            self._id = before.id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._new_run()
            if before is not None:
                self._copy(before.id, until=step)
                self._client.set_tag(before.id, CONTINUED_BY, self._id)
        ExternalRun(self._id, step).write(self._folder / KEPT)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._send([Metric(name, float(value), now, step) for name, value in metrics.items()])
        ExternalRun(self._id, step).write(self._folder / KEPT)

    def close(self) -> None:
        if self._id:
            self._client.set_terminated(self._id)

    def _new_run(self) -> str:
        client, section = self._client, self._section
        known = client.get_experiment_by_name(section.experiment)
        experiment = known.experiment_id if known else client.create_experiment(section.experiment)
        id = client.create_run(experiment, run_name=section.name or None).info.run_id
        parameters = list(_parameters(configuration_beside(self._folder)))
        for first in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(id, params=parameters[first : first + MOST_PARAMETERS])
        return str(id)

    def _copy(self, id: str, *, until: int) -> None:
        for name in self._client.get_run(id).data.metrics:
            self._send([one for one in self._client.get_metric_history(id, name) if one.step <= until])

    def _send(self, metrics: list[Metric]) -> None:
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_METRICS])


def _parameters(tables: Mapping[str, Any], prefix: str = "") -> Iterator[Param]:
    """``section.field`` -> value, for each field of the configuration."""
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _parameters(value, f"{prefix}{name}.")
        else:
            yield Param(f"{prefix}{name}", str(value))


def build(section: MlflowSection, folder: Path) -> MlflowLogger:
    folder.mkdir(parents=True, exist_ok=True)
    return MlflowLogger(section, folder)
