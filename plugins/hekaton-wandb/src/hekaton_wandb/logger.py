"""Sends metrics to Weights & Biases, or writes them for it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from hekaton.external_runs import ExternalRun, configuration_beside, read_external_run
from hekaton_wandb.section import WandbSection

KEPT = "wandb_run.json"


class WandbLogger:
    """One run of Weights & Biases for a run folder, over restarts.

    Weights & Biases refuses steps that it has. A run that resumes before the last logged step is therefore
    rewound to where it resumes (online, https://docs.wandb.ai/guides/runs/rewind), or is a new run in the
    same group (offline, where nothing can be rewound).
    """

    def __init__(self, section: WandbSection, folder: Path) -> None:
        self._section = section
        self._folder = folder
        self._run: Any = None

    def resume(self, step: int) -> None:
        section = self._section
        before = read_external_run(self._folder / KEPT) if step else None
        kept, options = continued(before, step, offline=self._is_offline(), group=section.group)
        self._run = wandb.init(
            project=section.project or None,
            entity=section.entity or None,
            name=section.name or None,
            group=kept.group or None,
            tags=section.tags or None,
            dir=str(self._folder),
            config=configuration_beside(self._folder),
            mode=section.mode or None,
            settings=wandb.Settings(silent=True),
            **options,  # type: ignore[arg-type] # an id, and how to resume it
        )
        self._kept = kept
        kept.write(self._folder / KEPT)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)
        ExternalRun(self._kept.id, step, self._kept.group).write(self._folder / KEPT)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _is_offline(self) -> bool:
        return (self._section.mode or os.environ.get("WANDB_MODE", "online")) != "online"


def continued(
    before: ExternalRun | None, step: int, *, offline: bool, group: str
) -> tuple[ExternalRun, dict[str, str]]:
    """The run to log to, and the arguments of ``wandb.init`` that make it so.

    :param before: the run that this one continues, ``None`` for a new one.
    :param step: steps that are done.
    """
    if before is None:
        new = ExternalRun(_new_id(), step, group)
        return new, {"id": new.id}
    if before.step <= step:
        return before, {"id": before.id, "resume": "allow"}
    if offline:
        new = ExternalRun(_new_id(), step, group or before.group or before.id)
        return new, {"id": new.id}
    return ExternalRun(before.id, step, before.group), {"resume_from": f"{before.id}?_step={step}"}


def _new_id() -> str:
    return secrets.token_hex(4)


def build(section: WandbSection, folder: Path) -> WandbLogger:
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(section, folder)
