"""What a run keeps in its checkpoints, and how it resumes from one."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hekaton.checkpoint.disk.folders import Folder, folder_at, reason_of, write_whole
from hekaton.checkpoint.disk.manifest import MANIFEST, MODEL, Manifest, NotWhole
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs import external_weights
from hekaton.checkpoint.runs.asked import Checkpoints as Checkpoints
from hekaton.checkpoint.runs.asked import NoCheckpoints
from hekaton.checkpoint.runs.background import BackgroundSaves
from hekaton.checkpoint.runs.manager import CheckpointManager
from hekaton.checkpoint.runs.run_state import RunState
from hekaton.checkpoint.tensors.comparison import DoesNotFit, Parts
from hekaton.checkpoint.tensors.state import (
    check_info,
    converted,
    lacking_elsewhere,
    stored_tensors,
)
from hekaton.config import as_dict
from hekaton.errors import CheckpointError
from hekaton.identity.history import Change, history_to_json
from hekaton.identity.resume import compare, explained
from hekaton.identity.values import shown
from hekaton.weights.counterpart import Counterpart, adapter_of, adapters_of, build_format
from hekaton.weights.facts import ModelFacts, SpecialTokens, facts_of_step
from hekaton.weights.merge import added, as_unconverted
from hekaton.weights.table import listed

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.plugins import Plugins

log = logging.getLogger("hekaton")

HISTORY = "history.json"
"""The file beside the run with the changes at its resumes."""

# The parts of a run's state without which it cannot go on; random numbers it can do without.
_STATE = (MODEL, "optimizer", "lr_scheduler", "data_loader")
_WITHOUT_TENSORS = ("lr_scheduler",)
_TENSORS_ALONE = (MODEL,)


def open_checkpoints(config: JobConfig, plugins: Plugins, state: RunState) -> Checkpoints:
    """The checkpoints of a run; with ``checkpoint.enable = false``, none.

    :raises CheckpointError: when another run writes to the folder.
    """
    return RunCheckpoints(config, plugins, state) if config.checkpoint.enable else NoCheckpoints(config)


class RunCheckpoints:
    """Saves and resumes a run: model, optimizers, schedule, data position, random numbers, step."""

    def __init__(self, config: JobConfig, plugins: Plugins, state: RunState) -> None:
        """:raises CheckpointError: when another run writes to the folder."""
        self._config = config
        self._plugins = plugins
        self._run = state
        self._settings = config.checkpoint
        self._folder = folder_at(config.checkpoint.folder, within=config.job.dump_folder)
        self._manager = CheckpointManager(
            self._folder,
            describe={
                "model": config.model.name,
                "flavor": config.model.flavor,
                "layout": dataclasses.asdict(state.dims),
                "config": as_dict(config),
                "identity": state.identity.to_json(),
            },
            keep_latest_k=config.checkpoint.keep_latest_k,
        )
        self._history: list[Change] = []
        state.identity.check_accepted(self._settings.accept_changes)
        self._came_from(ModelFacts())
        if not self._settings.load_only:
            self._manager.lock()
        self._background: BackgroundSaves | None = None
        if self._settings.async_mode != "disabled" and not self._settings.load_only:
            pinned = self._settings.async_mode == "async_with_pinned_mem" and torch.cuda.is_available()
            self._background = BackgroundSaves(self._manager, pinned=pinned, saved=self._saved)
            for optimizer in state.optimizers if pinned else ():
                optimizer.register_step_pre_hook(self._hold_device)

    def due(self, step: int) -> bool:
        """Whether the step just done is to be saved."""
        if self._settings.load_only:
            return False
        first = step == 1 and self._settings.enable_first_step_checkpoint
        return first or step % self._settings.interval == 0 or step == self._config.training.steps

    def save(self, step: int, *, good: bool) -> None:
        """Save the step just done.

        :param good: whether its loss and gradients are finite.
        :raises CheckpointError: on all ranks, when the disk refuses, or the precision of an export.
        """
        if self._settings.load_only:
            log.warning("step %d is not saved: checkpoint.load_only is set", step)
            return
        last = step == self._config.training.steps
        if last and self._settings.last_save_model_only:
            self._save_model(step, good=good)
        else:
            self._save_all(step, good=good)

    def _save_model(self, step: int, *, good: bool) -> None:
        """Save the model alone, in the precision of exports.

        :raises CheckpointError: on all ranks, when it cannot hold a weight; everything is saved before.
        """
        dtype = getattr(torch, self._settings.export_dtype)
        live = stored_tensors(self._run.parts)
        try:
            model = Ranks.of().each(lambda: converted(live, dtype))
        except CheckpointError as error:
            self._save_all(step, good=good)
            raise CheckpointError(
                f"step {step} cannot be saved in checkpoint.export_dtype = "
                f'"{self._settings.export_dtype}": {error.message}',
                hint="it is saved as the steps before are, with the optimizer and in the precision of "
                "training: convert that step to another precision",
            ) from error
        self._start(step, {"model": model}, {}, good=good)

    def _save_all(self, step: int, *, good: bool) -> None:
        run = self._run
        parts, optimizer_rest = run.gather()
        info = {
            "optimizer": optimizer_rest,
            "lr_scheduler": {"steps_done": run.learning_rate.steps_done},
            "bad_steps": run.bad_steps.state(),
            "data_loader": run.loader.identity(),
            "data_files": run.loader.files(),
        }
        self._start(step, parts, info, good=good)

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
        self._saved(0, self._manager.save(0, {"model": stored_tensors(self._run.parts)}, {}))

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
        """Release the lock."""
        self._manager.close()

    def _hold_device(self, *_: Any) -> None:
        assert self._background is not None
        self._background.hold_device()

    def _start(self, step: int, parts: Parts, info: Mapping[str, Any], *, good: bool) -> None:
        if self._background is not None:
            self._background.start(step, parts, info, good=good)
        else:
            self._saved(step, self._manager.save(step, parts, info, good=good))

    def _saved(self, step: int, folder: Folder) -> None:
        self._plugins.call("hekaton_checkpoint_saved", step=step, folder=folder)
        if step == self._config.training.steps and self._settings.last_save_in_hf:
            self._save_in_hf(folder)

    def _save_in_hf(self, step: Folder) -> None:
        """From the step on disk: gathering the model would take as long, and memory."""
        assert isinstance(step, Path)  # a rule
        assets = self._config.model.hf_assets_path
        external_weights.save(
            step,
            step.with_name(f"{step.name}-hf"),
            assets=None if assets is None else Path(assets),
            **self._in_hf(self._run.meta.draft.export_format),
        )

    def _in_hf(self, format_name: str = "hf") -> dict[str, Any]:
        meta = self._run.meta
        return {
            "weight_format": build_format(self._plugins, format_name),
            "model": Counterpart(
                spec=meta.spec,
                flavor=self._config.model.flavor,
                config=meta.config,
                adapter=adapter_of(self._plugins, self._config.model.name),
                draft=meta.draft,
            ),
            "ranks": Ranks.of(),
        }

    def resume(self) -> int:
        """Restore a checkpoint of this run; where there is none, start from ``initial_load_path``; where
        that is not set, leave everything as it is.

        :returns: the steps that are done.
        """
        settings = self._settings
        parts, _ = self._run.gather()
        whole: dict[str, Any] = {"optional": ["rng"], "check": self._compare}
        loaded = self._manager.load(parts, step=settings.load_step, choose=self._resumable, **whole)
        if loaded is not None:
            self._run.restore(loaded, parts, without=settings.exclude_from_loading)
            self._came_from(facts_of_step(loaded.describe))
            self._write_history()
            log.info("resumed at step %d", loaded.step)
            return loaded.step
        if settings.initial_load_path is not None:
            return self._start_from(folder_at(settings.initial_load_path), parts, whole)
        if settings.load_only and self._run.rank == 0:
            log.warning("there is no checkpoint to load in %s: the run starts from step 0", self._folder)
        return 0

    def go_back(self, before: int, *, why: str) -> tuple[int, torch.Tensor]:
        """Restore everything but the data's position from the last good step before step ``before``.

        :param why: for an error; :returns: that step, and the position of every row of the global batch then.
        :raises CheckpointError: where there is none.
        """
        if self._background is not None:
            self._background.wait()
        parts, _ = self._run.gather()

        def choose(manifest: Manifest) -> list[str]:
            if manifest.step >= before:
                raise NotWhole(f"it is not before step {before}")
            if manifest.model_only:
                raise NotWhole("it holds the model only")
            return list(manifest.parts)

        loaded = self._manager.load(parts, choose=choose, optional=["rng"])
        if loaded is None:
            raise CheckpointError(
                f"{why}, and {self._folder} has no step before step {before} to go back to",
                hint="save earlier: checkpoint.interval, checkpoint.enable_first_step_checkpoint",
            )
        self._manager.set_aside()
        self._run.restore(loaded, parts, without=["data_loader"])
        return loaded.step, parts["data_loader"]["cursor"]

    def _start_from(self, path: Folder, parts: Parts, whole: Mapping[str, Any]) -> int:
        settings = self._settings
        if settings.initial_load_in_hf:
            assert isinstance(path, Path)  # a rule
            facts = external_weights.load(
                path,
                parts["model"],
                overridden=self._config.model.overrides,
                quantized=settings.initial_load_in_hf_quantized,
                leave_out=settings.initial_load_leave_out,
                adapters=adapters_of(self._plugins),
                **self._in_hf(),
            )
            self._came_from(facts)
            log.info("started with the weights of %s", path)
            return 0
        if settings.initial_load_model_only:
            loaded = self._manager.load_elsewhere(
                path, parts, choose=self._model_of, check=self._compare_weights, fit=self._as_stored
            )
            self._came_from(facts_of_step(loaded.describe))
            log.info("started with the model of %s", loaded.folder)
            return 0
        loaded = self._manager.load_elsewhere(path, parts, choose=self._all_of, **whole)
        self._run.restore(loaded, parts, without=settings.exclude_from_loading)
        self._came_from(facts_of_step(loaded.describe))
        self._write_history()
        log.info("started from %s at step %d", loaded.folder, loaded.step)
        return loaded.step

    def _write_history(self) -> None:
        """Keep what changed beside the run, for those who read its curves."""
        if self._run.rank != 0 or not self._history or self._settings.load_only:
            return
        path = Path(self._config.job.dump_folder, HISTORY)
        text = json.dumps(history_to_json(self._history), indent=1)
        try:
            write_whole(path, f"{text}\n".encode())
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {reason_of(error)}") from error

    def _came_from(self, facts: ModelFacts) -> None:
        """Keep what is known of the weights that this run starts with, and what it adds to that."""
        tokenizer = self._run.tokenizer
        ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        mine = ModelFacts(
            positions=self._config.training.seq_len,
            tokens=SpecialTokens(bos_id=tokenizer.bos_id, eos_ids=ends),
        )
        self._manager.describe_further({"facts": facts.then(mine).to_json()})

    def _all_of(self, manifest: Manifest) -> list[str]:
        """What to load to resume from a step: everything that is not excluded."""
        tensors, info = {*manifest.parts, *_WITHOUT_TENSORS}, {*manifest.info, *_TENSORS_ALONE}
        excluded = self._settings.exclude_from_loading
        lacking = [name for name in _STATE if name not in tensors & info and name not in excluded]
        if lacking:
            what = "the model only" if manifest.model_only else f"no {', '.join(lacking)}"
            raise NotWhole(
                f"it holds {what}, which no run can resume from; a run can start with its weights: "
                "checkpoint.initial_load_path, checkpoint.initial_load_model_only"
            )
        try:
            check_info(manifest.info)
        except ValueError as error:
            raise NotWhole(f"{MANIFEST} cannot be used: {error}") from error
        return [name for name in manifest.parts if name not in excluded]

    def _resumable(self, manifest: Manifest) -> list[str]:
        """What to load from a step of this run. A model alone is enough before the first step and after the
        last."""
        if manifest.model_only and (manifest.step == 0 or manifest.step >= self._config.training.steps):
            return self._model_of(manifest)
        return self._all_of(manifest)

    def _model_of(self, manifest: Manifest) -> list[str]:
        return [name for name in (MODEL,) if name not in self._settings.exclude_from_loading]

    def _as_stored(self, parts: Parts, stored: Collection[str]) -> Parts:
        """The model's tensors as they were before the converters, where ``stored`` has nothing that these
        added, and without buffers that other programs do not keep: both keep their initial values."""
        if MODEL not in parts:
            return parts
        lacking = lacking_elsewhere(self._run.parts, stored, what="the checkpoint")
        everywhere = sorted(set().union(*Ranks.of().gather(lacking)))
        if everywhere and self._run.rank == 0:
            log.warning("not in the checkpoint, and as in a new model: %s", listed(everywhere))
        tensors = {name: tensor for name, tensor in parts[MODEL].items() if name not in lacking}
        merges = self._run.meta.draft.merges
        if merges and added(merges).isdisjoint(stored):
            tensors = as_unconverted(merges, tensors)
        return {**parts, MODEL: tensors}

    def _compare(self, manifest: Manifest, unfit: DoesNotFit | None) -> None:
        """Check that the resumed run is what it was, and keep what changed.

        :raises DataError: for other data, :class:`CheckpointError` for another model and for other changes
            that are not accepted.
        """
        settings, info = self._settings, manifest.info
        other_model = unfit is not None and unfit.of_model  # whose data may be other data as well
        compared = "data_loader" in info and "data_loader" not in settings.exclude_from_loading
        other_data = self._run.other_data(info) if compared and not other_model else None
        try:
            self._history = compare(
                self._run.identity,
                manifest.describe,
                step=manifest.step,
                accepted=settings.accept_changes,
                not_loaded=settings.exclude_from_loading,
                unfit=unfit,
                added=added(self._run.meta.draft.merges),
            )
        except CheckpointError as e:
            if other_data is None:
                raise
            other_data.message += f"; and {e.message}"
            other_data.hint += f"\n{e.hint}"
        if other_data is not None:
            raise other_data
        self._manager.describe_further({"history": history_to_json(self._history)})

    def _compare_weights(self, manifest: Manifest, unfit: DoesNotFit | None) -> None:
        """Say what other weights were trained with that this run has otherwise."""
        if unfit is not None:
            raise explained(unfit, self._run.identity.all_changes_since(manifest.describe), resumed=False)
        for change in self._run.identity.of_weights(manifest.describe):
            log.warning(
                "the weights were trained with %s = %s, and this run has %s",
                change.field, shown(change.was), shown(change.now),
            )  # fmt: skip
