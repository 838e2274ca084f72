"""What a run keeps in its checkpoints, and how it goes on from one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hekaton.build import model_config
from hekaton.checkpoint import formats
from hekaton.checkpoint.background import BackgroundSaves
from hekaton.checkpoint.folders import Folder, folder_at
from hekaton.checkpoint.integrity import MODEL, Manifest, NotWhole
from hekaton.checkpoint.manager import CheckpointManager, Loaded
from hekaton.checkpoint.matching import Parts
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.state import (
    converted,
    model_tensors,
    optimizer_state,
    restore_optimizers,
    restore_rng,
    rng_tensors,
)
from hekaton.config import as_dict
from hekaton.data.loader import check_identity
from hekaton.errors import CheckpointError
from hekaton.weights.counterpart import Counterpart, adapter_of, build_format

if TYPE_CHECKING:
    from hekaton.trainer import Trainer

log = logging.getLogger("hekaton")

# The parts of a run's state without which it cannot go on; random numbers it can do without.
_STATE = (MODEL, "optimizer", "lr_scheduler", "data_loader")


class RunCheckpoints:
    """Saves and resumes a trainer: model, optimizers, schedule, data position, random numbers, step."""

    def __init__(self, trainer: Trainer) -> None:
        """:raises CheckpointError: when another run writes to the folder."""
        self._trainer = trainer
        config = trainer.config
        self._settings = config.checkpoint
        self._folder = folder_at(config.checkpoint.folder, within=config.job.dump_folder)
        self._manager = CheckpointManager(
            self._folder,
            describe={
                "model": config.model.name,
                "flavor": config.model.flavor,
                "layout": dataclasses.asdict(trainer.dims),
                "config": as_dict(config),
            },
            keep_latest_k=config.checkpoint.keep_latest_k,
        )
        if not self._settings.load_only:
            self._manager.lock()
        self._background: BackgroundSaves | None = None
        if self._settings.async_mode != "disabled" and not self._settings.load_only:
            pinned = self._settings.async_mode == "async_with_pinned_mem" and torch.cuda.is_available()
            self._background = BackgroundSaves(self._manager, pinned=pinned, saved=self._saved)
            for optimizer in trainer.optimizers if pinned else ():
                optimizer.register_step_pre_hook(self._hold_device)

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
        last = trainer.step == trainer.config.training.steps
        if last and self._settings.last_save_model_only:
            dtype = getattr(torch, self._settings.export_dtype)
            self._start({"model": converted(model_tensors(trainer.model_parts), dtype)}, {}, good=good)
            return
        parts, optimizer_rest = self._state()
        info = {
            "optimizer": optimizer_rest,
            "lr_scheduler": {"steps_done": trainer.learning_rate.steps_done},
            "data_loader": trainer.loader.identity(),
        }
        self._start(parts, info, good=good)

    def save_seed(self) -> None:
        """Save the initial weights as step 0.

        :raises CheckpointError: when the folder has steps already.
        """
        steps = self._manager.steps()
        if steps:
            raise CheckpointError(
                f"a seed checkpoint is the first in its folder, and {self._folder} has step-{steps[-1]}",
                hint="choose another job.dump_folder or checkpoint.folder",
            )
        self._saved(0, self._manager.save(0, {"model": model_tensors(self._trainer.model_parts)}, {}))

    def poll(self) -> None:
        """Called before every step: finish a save that was written meanwhile, or raise what went wrong."""
        if self._background is not None:
            self._background.poll()

    def end(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Called when the run ends, by what if early: wait for the save that is being written, and let other
        runs have the folder."""
        try:
            if self._background is not None:
                self._background.end(error)
        finally:
            self.close()

    def close(self) -> None:
        """Let other runs have the folder."""
        self._manager.close()

    def _hold_device(self, *_: Any) -> None:
        assert self._background is not None
        self._background.hold_device()

    def _start(self, parts: Parts, info: Mapping[str, Any], *, good: bool) -> None:
        step = self._trainer.step
        if self._background is not None:
            self._background.start(step, parts, info, good=good)
        else:
            self._saved(step, self._manager.save(step, parts, info, good=good))

    def _saved(self, step: int, folder: Folder) -> None:
        self._trainer.plugins.call("hekaton_checkpoint_saved", step=step, folder=folder)
        if step == self._trainer.config.training.steps and self._settings.last_save_in_hf:
            self._save_in_hf(folder)

    def _save_in_hf(self, step: Folder) -> None:
        """From the step on disk: gathering the model would take as long, and memory."""
        assert isinstance(step, Path)  # a rule
        assets = self._trainer.config.model.hf_assets_path
        formats.save(
            step,
            step.with_name(f"{step.name}-hf"),
            assets=None if assets is None else Path(assets),
            **self._in_hf(),
        )

    def _in_hf(self) -> dict[str, Any]:
        config, plugins = self._trainer.config, self._trainer.plugins
        spec, settings = model_config(config, plugins)
        return {
            "weight_format": build_format(plugins, "hf"),
            "model": Counterpart(
                spec=spec,
                flavor=config.model.flavor,
                config=settings,
                adapter=adapter_of(plugins, config.model.name),
            ),
            "ranks": Ranks.of(),
        }

    def resume(self) -> None:
        """Go on from a checkpoint of this run; where there is none, start from ``initial_load_path``; where
        that is not set, leave everything as it is."""
        settings = self._settings
        parts, _ = self._state()
        whole: dict[str, Any] = {"optional": ["rng"], "check": self._check_data}
        loaded = self._manager.load(parts, step=settings.load_step, choose=self._resumable, **whole)
        if loaded is not None:
            self._restore(loaded, parts)
            log.info("resumed at step %d", loaded.step)
        elif settings.initial_load_path is not None:
            path = folder_at(settings.initial_load_path)
            if settings.initial_load_in_hf:
                assert isinstance(path, Path)  # a rule
                overridden = self._trainer.config.model.overrides
                formats.load(path, parts["model"], overridden=overridden, **self._in_hf())
                log.info("started with the weights of %s", path)
            elif settings.initial_load_model_only:
                loaded = self._manager.load_elsewhere(path, parts, choose=self._model_of)
                log.info("started with the model of %s", loaded.folder)
            else:
                loaded = self._manager.load_elsewhere(path, parts, choose=self._all_of, **whole)
                self._restore(loaded, parts)
                log.info("started from %s at step %d", loaded.folder, loaded.step)
        elif settings.load_only and self._trainer.process.rank == 0:
            log.warning("there is no checkpoint to load in %s: the run starts afresh", self._folder)

    def _state(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """The tensors of the run by part, and the optimizers' rest."""
        trainer = self._trainer
        optimizer, optimizer_rest = optimizer_state(trainer.model_parts, trainer.optimizers)
        parts = {
            "model": model_tensors(trainer.model_parts),
            "optimizer": optimizer,
            "data_loader": {"cursor": self._whole_cursor()},
            "rng": rng_tensors(trainer.process.rank),
        }
        return parts, optimizer_rest

    def _all_of(self, manifest: Manifest) -> list[str]:
        """What to load to go on from a step: everything that is not excluded."""
        there = {*manifest.parts, *manifest.info}
        excluded = self._settings.exclude_from_loading
        lacking = [name for name in _STATE if name not in there and name not in excluded]
        if lacking:
            what = "the model only" if manifest.model_only else f"no {', '.join(lacking)}"
            raise NotWhole(
                f"it holds {what}, from which no run can go on; one can start with it: "
                "checkpoint.initial_load_path, checkpoint.initial_load_model_only"
            )
        return [name for name in manifest.parts if name not in excluded]

    def _resumable(self, manifest: Manifest) -> list[str]:
        """What to load from a step of this run. A model alone is enough before the first step and after the
        last."""
        if manifest.model_only and (
            manifest.step == 0 or manifest.step >= self._trainer.config.training.steps
        ):
            return self._model_of(manifest)
        return self._all_of(manifest)

    def _model_of(self, manifest: Manifest) -> list[str]:
        return [name for name in (MODEL,) if name not in self._settings.exclude_from_loading]

    def _check_data(self, info: Mapping[str, Any]) -> None:
        if "data_loader" in info and "data_loader" not in self._settings.exclude_from_loading:
            check_identity(info["data_loader"], self._trainer.loader.identity())

    def _restore(self, loaded: Loaded, parts: Parts) -> None:
        """Put what is no tensor, and no live one, back in its place."""
        trainer, info = self._trainer, loaded.info
        if "optimizer" in loaded.parts:
            restore_optimizers(trainer.model_parts, trainer.optimizers, parts["optimizer"], info["optimizer"])
        if "lr_scheduler" in info and "lr_scheduler" not in self._settings.exclude_from_loading:
            trainer.learning_rate.steps_done = info["lr_scheduler"]["steps_done"]
        if "data_loader" in loaded.parts:
            rows = trainer.rows
            trainer.loader.seek(parts["data_loader"]["cursor"][rows.start : rows.stop])
        if "rng" in loaded.parts:
            restore_rng(parts["rng"])
        trainer.step = loaded.step

    def _whole_cursor(self) -> torch.Tensor:
        """The position of every row of the global batch, (global_batch_size, 2)."""
        trainer = self._trainer
        mine = trainer.loader.cursor()
        pieces = [torch.empty_like(mine) for _ in range(trainer.dims.dp)]
        dist.all_gather(pieces, mine, group=trainer.meshes.batch["dp"].get_group())
        return torch.cat(pieces)
