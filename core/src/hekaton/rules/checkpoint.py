"""Rules of [checkpoint]: what is asked of loading and saving can be had together."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hekaton.contributions import CheckpointFormat, HFAdapter, IdentitySubject
from hekaton.errors import ConfigError, HekatonError, choices_hint
from hekaton.rules.run import Run
from hekaton.urls import check_url, is_url

IDLE_WITHOUT_SAVES = (
    "interval",
    "keep_latest_k",
    "enable_first_step_checkpoint",
    "last_save_model_only",
    "last_save_in_hf",
    "export_dtype",
    "async_mode",
)

OUTSIDE_SECTIONS = (
    "training data", "validation data", "version of ", "code of ", "device", "compute capability", "CUDA",
    "cuDNN", "NCCL",
)  # fmt: skip
"""How the values of a run's identity begin that are in no section; see :mod:`hekaton.identity.kept`."""


def seed_is_the_start(run: Run) -> Iterator[HekatonError]:
    """A seed checkpoint holds the initial weights, whole, and nothing is loaded before it."""
    checkpoint = run.config.checkpoint
    if not checkpoint.create_seed_checkpoint:
        return
    seed = "checkpoint.create_seed_checkpoint"
    if not checkpoint.enable:
        yield run.violation(
            f"{seed} saves a checkpoint, and checkpoint.enable is false",
            seed,
            "checkpoint.enable",
            hint="add --checkpoint.enable",
        )
    if run.world_size is not None and run.world_size > 1:
        yield run.violation(
            f"{seed} is the work of one process; this run has {run.world_size}",
            seed,
            hint="start one, with every degree of parallelism 1: the checkpoint loads under any layout",
        )
    instead = {
        "load_only": (checkpoint.load_only, "saves nothing"),
        "initial_load_path": (checkpoint.initial_load_path is not None, "replaces them"),
        "initial_load_in_hf": (checkpoint.initial_load_in_hf, "replaces them"),
        "load_step": (checkpoint.load_step >= 0, "replaces them"),
    }
    for name, (there, why) in instead.items():
        if there:
            yield run.violation(
                f"{seed} saves the initial weights, and checkpoint.{name} {why}",
                seed,
                f"checkpoint.{name}",
                hint="leave out one of the two",
            )


def something_is_loaded(run: Run) -> Iterator[HekatonError]:
    """What is to be loaded is there after what is excluded, and leaves steps to train."""
    checkpoint, steps = run.config.checkpoint, run.config.training.steps
    if not checkpoint.enable:
        return
    if checkpoint.load_step >= steps:
        yield run.violation(
            f"checkpoint.load_step = {checkpoint.load_step} leaves nothing to train: the run ends at "
            f"training.steps = {steps}",
            "checkpoint.load_step",
            "training.steps",
        )
    excluded = set(checkpoint.exclude_from_loading)
    if excluded >= {"model", "optimizer", "lr_scheduler", "data_loader"}:
        yield run.violation(
            "checkpoint.exclude_from_loading names every part: nothing is left to load",
            "checkpoint.exclude_from_loading",
            hint="to start from step 0, choose another job.dump_folder or checkpoint.folder",
        )
    if checkpoint.initial_load_in_hf and not checkpoint.initial_load_model_only:
        yield run.violation(
            "checkpoint.initial_load_model_only = false asks for optimizer and step, and a Hugging Face "
            "checkpoint holds the model only",
            "checkpoint.initial_load_model_only",
            "checkpoint.initial_load_in_hf",
            hint="leave checkpoint.initial_load_model_only at true",
        )
    if checkpoint.initial_load_path is None:
        return
    if checkpoint.initial_load_model_only and "model" in excluded:
        yield run.violation(
            "checkpoint.initial_load_path is set for the model, and checkpoint.exclude_from_loading leaves "
            "the model out",
            "checkpoint.initial_load_path",
            "checkpoint.exclude_from_loading",
            hint='take "model" out of checkpoint.exclude_from_loading, or set '
            "checkpoint.initial_load_model_only = false",
        )
    yield from _comes_from_elsewhere(run, checkpoint.initial_load_path)


def accepted_changes_are_of_a_value(run: Run) -> Iterator[HekatonError]:
    """``checkpoint.accept_changes`` names values of a section, of the model or of what plugins add. Whether
    the section or the model has such a value is known once the run is built."""
    checkpoint = run.config.checkpoint
    if not checkpoint.enable:
        return
    tables = [*type(run.config).model_fields, *run.plugins.all(IdentitySubject)]
    for name in checkpoint.accept_changes:
        table, dot, value = name.partition(".")
        if table not in tables and not name.startswith(OUTSIDE_SECTIONS):
            yield run.violation(
                f"checkpoint.accept_changes names '{name}', which is no value of this run",
                "checkpoint.accept_changes",
                hint=choices_hint(name, [f"{one}.{value}" if dot else one for one in tables]),
            )


def _comes_from_elsewhere(run: Run, path: str) -> Iterator[HekatonError]:
    own = run.config.checkpoint.folder
    if not is_url(own):
        own = os.path.normpath(os.path.join(run.config.job.dump_folder, own))
    if f"{_absolute(path)}/".startswith(f"{_absolute(own)}/"):
        yield run.violation(
            f"checkpoint.initial_load_path = '{path}' is in the run's own checkpoint folder '{own}', and is "
            "loaded only while that has no checkpoint",
            "checkpoint.initial_load_path",
            hint="to resume from a step of this run, set checkpoint.load_step; to start another run from it, "
            "choose another job.dump_folder",
        )


def _absolute(location: str) -> str:
    return location.rstrip("/") if is_url(location) else os.path.realpath(location)


def folders_can_be_reached(run: Run) -> Iterator[HekatonError]:
    """A folder that is a URL is of a kind that fsspec knows, and its package is installed."""
    checkpoint = run.config.checkpoint
    if not checkpoint.enable:
        return
    for name in ("folder", "initial_load_path"):
        location = getattr(checkpoint, name)
        if location is not None and is_url(location):
            try:
                check_url(location)
            except ConfigError as e:
                yield run.violation(f"checkpoint.{name} = {e.message}", f"checkpoint.{name}", hint=e.hint)


def something_is_saved(run: Run) -> Iterator[HekatonError | str]:
    """What is said about the last save applies to one."""
    checkpoint = run.config.checkpoint
    if not checkpoint.enable:
        return
    if checkpoint.load_only:
        idle = [f"checkpoint.{name}" for name in IDLE_WITHOUT_SAVES if run.is_set(f"checkpoint.{name}")]
        if idle:
            yield f"{', '.join(idle)}: no effect: checkpoint.load_only saves nothing"
        return
    if checkpoint.async_mode == "async_with_pinned_mem" and run.device_type != "cuda":
        yield (
            f'checkpoint.async_mode = "async_with_pinned_mem" is the same as "async" on {run.device_type}: '
            "pinned memory is for copies from CUDA"
        )
    if not checkpoint.last_save_model_only:
        needs_it = {
            "checkpoint.last_save_in_hf = true": checkpoint.last_save_in_hf,
            f'checkpoint.export_dtype = "{checkpoint.export_dtype}"': checkpoint.export_dtype != "float32",
        }
        for said, there in needs_it.items():
            if there:
                yield run.violation(
                    f"{said} is for a model that is saved alone, and the last step is saved with everything",
                    said.split(" ")[0],
                    "checkpoint.last_save_model_only",
                    hint="add checkpoint.last_save_model_only = true",
                )


def hugging_face_knows_the_model(run: Run) -> Iterator[HekatonError]:
    """What is read or written in the layout of Hugging Face has a counterpart there."""
    checkpoint, model = run.config.checkpoint, run.config.model.name
    wanted = {
        "initial_load_in_hf": checkpoint.initial_load_in_hf and checkpoint.initial_load_path is not None,
        "last_save_in_hf": checkpoint.last_save_in_hf and not checkpoint.load_only,
    }
    fields = [f"checkpoint.{name}" for name, there in wanted.items() if there]
    if not checkpoint.enable or not fields:
        return
    path = checkpoint.initial_load_path
    if wanted["initial_load_in_hf"] and path is not None and is_url(path):
        yield run.violation(
            f"checkpoint.initial_load_in_hf reads from the disk, and initial_load_path = '{path}' is a URL",
            "checkpoint.initial_load_path",
            hint="copy it to the disk, or convert it: hekaton convert from-hf",
        )
    if wanted["last_save_in_hf"] and is_url(checkpoint.folder):
        yield run.violation(
            f"checkpoint.last_save_in_hf writes to the disk, and folder = '{checkpoint.folder}' is a URL",
            "checkpoint.last_save_in_hf",
            "checkpoint.folder",
            hint="convert the last step afterwards: hekaton convert to-hf",
        )
    adapters = run.plugins.all(HFAdapter)
    said = " and ".join(f"{field} = true" for field in fields)
    if model not in adapters:
        yield run.violation(
            f"{said}: no plugin says what model '{model}' is in the layout of Hugging Face",
            *fields,
            "model.name",
            hint=f"there are adapters of: {', '.join(sorted(adapters))}"
            if adapters
            else "there are no adapters",
        )
    if "hf" not in run.plugins.all(CheckpointFormat):
        yield run.violation(f"{said}: no plugin reads and writes it", *fields, hint="install hekaton-hf")
