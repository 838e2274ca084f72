"""Rule of what a run starts from in an external layout: it is of the run's model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hekaton.contributions import CheckpointFormat, HFAdapter, Model
from hekaton.errors import CheckpointError, HekatonError
from hekaton.rules.run import Run
from hekaton.urls import is_url


def initial_weights_are_of_the_model(run: Run) -> Iterator[HekatonError]:
    """A folder in the layout of Hugging Face is of this model and holds no other that is not left out.

    A folder that is not there is left to the loading, and so are the tensors; a run that has checkpoints of
    its own does not read the folder.
    """
    checkpoint, model = run.config.checkpoint, run.config.model
    path = checkpoint.initial_load_path
    if not (checkpoint.enable and checkpoint.initial_load_in_hf and run.here and run.model is not None):
        return
    if path is None or is_url(path) or not Path(path).is_dir() or _has_checkpoints(run):
        return
    records = run.plugins.all(HFAdapter)
    if model.name not in records or "hf" not in run.plugins.all(CheckpointFormat):
        return  # another rule says so
    from hekaton.spec import load_spec
    from hekaton.weights.counterpart import Counterpart, adapters_of, build_format

    counterpart = Counterpart(
        spec=load_spec(run.plugins.get(Model, model.name)),
        flavor=model.flavor,
        config=run.model,
        adapter=records[model.name].record,
    )
    try:
        counterpart.check_source(
            build_format(run.plugins, "hf").open(Path(path)),
            overridden=model.overrides,
            leave_out=checkpoint.initial_load_leave_out,
            adapters=adapters_of(run.plugins),
            what=path,
        )
    except CheckpointError as error:
        yield run.violation(error.message, "checkpoint.initial_load_path", hint=error.hint)


def _has_checkpoints(run: Run) -> bool:
    folder = run.config.checkpoint.folder
    if is_url(folder):
        return True  # looking there is for the run
    return any(Path(run.config.job.dump_folder, folder).glob("step-*"))
