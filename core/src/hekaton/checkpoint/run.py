"""What a run keeps in its checkpoints, and how it goes on from one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hekaton.checkpoint.manager import CheckpointManager
from hekaton.checkpoint.state import (
    model_tensors,
    optimizer_state,
    restore_optimizers,
    restore_rng,
    rng_tensors,
)
from hekaton.config import as_dict
from hekaton.data.loader import check_identity

if TYPE_CHECKING:
    from hekaton.trainer import Trainer

log = logging.getLogger("hekaton")


class RunCheckpoints:
    """Saves and resumes a trainer: model, optimizers, schedule, data position, random numbers, step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        config = trainer.config
        self._settings = config.checkpoint
        self._manager = CheckpointManager(
            Path(config.job.dump_folder, config.checkpoint.folder),
            describe={
                "model": config.model.name,
                "flavor": config.model.flavor,
                "layout": dataclasses.asdict(trainer.dims),
                "config": as_dict(config),
            },
            keep_latest_k=config.checkpoint.keep_latest_k,
        )

    def due(self) -> bool:
        """Whether the step just done is to be saved."""
        if self._settings.load_only:
            return False
        step = self._trainer.step
        first = step == 1 and self._settings.enable_first_step_checkpoint
        return first or step % self._settings.interval == 0 or step == self._trainer.config.training.steps

    def save(self, *, good: bool) -> None:
        """Save the step just done.

        :param good: whether its loss and gradients are finite.
        """
        trainer = self._trainer
        optimizer, optimizer_rest = optimizer_state(trainer.model_parts, trainer.optimizers)
        parts = {
            "model": model_tensors(trainer.model_parts),
            "optimizer": optimizer,
            "data_loader": {"cursor": self._whole_cursor()},
            "rng": rng_tensors(trainer.process.rank),
        }
        info = {
            "optimizer": optimizer_rest,
            "lr_scheduler": {"steps_done": trainer.learning_rate.steps_done},
            "data_loader": trainer.loader.identity(),
        }
        folder = self._manager.save(trainer.step, parts, info, good=good)
        trainer.plugins.call("hekaton_checkpoint_saved", step=trainer.step, folder=folder)

    def resume(self) -> None:
        """Go on from a checkpoint of this run, if there is one; otherwise leave everything as it is."""
        trainer = self._trainer
        excluded = set(self._settings.exclude_from_loading)
        optimizer, _ = optimizer_state(trainer.model_parts, trainer.optimizers)
        every: dict[str, dict[str, Any]] = {
            "model": model_tensors(trainer.model_parts),
            "optimizer": optimizer,
            "data_loader": {"cursor": self._whole_cursor()},
            "rng": rng_tensors(trainer.process.rank),
        }
        parts = {name: tensors for name, tensors in every.items() if name not in excluded}

        def same_data(info: Mapping[str, Any]) -> None:
            if "data_loader" in parts:
                check_identity(info["data_loader"], trainer.loader.identity())

        loaded = self._manager.load(parts, step=self._settings.load_step, optional=["rng"], check=same_data)
        if loaded is None:
            return
        if "optimizer" in parts:
            restore_optimizers(trainer.model_parts, trainer.optimizers, optimizer, loaded.info["optimizer"])
        if "lr_scheduler" not in excluded:
            trainer.learning_rate.steps_done = loaded.info["lr_scheduler"]["steps_done"]
        if "data_loader" in parts:
            rows = trainer.rows
            trainer.loader.seek(every["data_loader"]["cursor"][rows.start : rows.stop])
        if "rng" in loaded.parts:
            restore_rng(every["rng"])
        trainer.step = loaded.step
        log.info("resumed at step %d", loaded.step)

    def _whole_cursor(self) -> torch.Tensor:
        """The position of every row of the global batch, (global_batch_size, 2)."""
        trainer = self._trainer
        mine = trainer.loader.cursor()
        pieces = [torch.empty_like(mine) for _ in range(trainer.dims.dp)]
        dist.all_gather(pieces, mine, group=trainer.meshes.batch["dp"].get_group())
        return torch.cat(pieces)
