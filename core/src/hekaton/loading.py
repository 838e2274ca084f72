"""A trained model with its tokenizer, on one device: from a run's folder, a step, or another format."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from hekaton.building import MetaModel, build_meta, materialize
from hekaton.checkpoint.disk.folders import Folder, folder_at
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs.inspection import find_steps
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.checkpoint.tensors.state import lacking_elsewhere, model_tensors, stored_tensors
from hekaton.config import JobConfig
from hekaton.config.job import config_of
from hekaton.data.byte import ByteTokenizer
from hekaton.distributed import plain
from hekaton.draft import Draft
from hekaton.errors import CheckpointError
from hekaton.fetching import fetched, name_source
from hekaton.loaded_model import LoadedModel
from hekaton.mesh import ParallelDims
from hekaton.parallel.fsdp import DTYPES, check_shardable, tied_across
from hekaton.parallel.plan import ParallelPlan, blocks
from hekaton.plugins import Plugins
from hekaton.recorded import (
    check_vocabulary,
    dtype_of,
    recorded_config,
    tokenizer_of_folder,
    tokenizer_of_run,
)
from hekaton.weights import LazyTensor
from hekaton.weights.counterpart import Counterpart, build_format, counterpart_of
from hekaton.weights.facts import facts_of_step
from hekaton.weights.fill import fill
from hekaton.weights.table import listed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

log = logging.getLogger("hekaton")

_SHOWN = 10
_LOOKS = 10
"""For steps, while a run removes those that were found."""

Arrange: TypeAlias = Callable[[JobConfig, MetaModel], None]
"""Cuts and shards a model on the meta device, which is then given memory and this process's part of the
weights."""


def load_checkpoint(
    location: str,
    plugins: Plugins,
    *,
    device: torch.device,
    dtype: str | None = None,
    assets: str | None = None,
    model: str | None = None,
    flavor: str | None = None,
    mesh: DeviceMesh | None = None,
    arrange: Arrange | None = None,
) -> LoadedModel:
    """Load the model of a checkpoint that any layout saved, as the run had it, converters included.

    :param location: a run's folder or its checkpoint folder, of which the newest good step is loaded, or one
        step folder; or a URL. Of several processes the first alone looks which steps there are.
    :param dtype: of the model, a name in :data:`DTYPES`; by default that of most of the weights.
    :param assets: the tokenizer's folder, where it is no longer where the run's configuration says.
    :param model: the model's name, and ``flavor`` its flavor, of a checkpoint that does not say them.
    :param mesh: of one dim, over which the parameters are sharded; each process reads its own part.
    :param arrange: places the model on another layout.
    :raises CheckpointError: where there is no such step, it is damaged or not whole, or cannot be built.
    :raises DataError: for a tokenizer that is not there, or not the one that the run had.
    """
    ranks = loading_ranks(mesh, arrange)
    attempt = partial(
        _from_step, plugins=plugins, device=device, dtype=dtype, assets=assets, model=model, flavor=flavor,
        mesh=mesh, arrange=arrange,
    )  # fmt: skip
    steps, looks = ranks.first(lambda: _usable_steps(location)), 1
    while True:
        step = steps.pop(0)
        found = ranks.each(partial(attempt, step))
        errors = ranks.gather(found if isinstance(found, CheckpointError) else None)
        wrong = next((one for one in errors if one is not None), None)
        if wrong is None:
            assert isinstance(found, LoadedModel)
            return found
        now = ranks.first(lambda: _usable_steps(location))
        if step not in now and looks < _LOOKS:  # a run that writes there has removed it, and has newer ones
            steps, looks = now, looks + 1
        elif not steps:
            raise wrong
        else:
            log.warning("skipping %s: %s", step, wrong)


def loading_ranks(mesh: DeviceMesh | None, arrange: Arrange | None) -> Ranks:
    """The processes that have parts of one model, or its copies."""
    if mesh is None and arrange is None:
        return Ranks(None, 0, 1)
    return Ranks.of(None if mesh is None else mesh.get_group())


def _from_step(
    step: Folder,
    *,
    plugins: Plugins,
    device: torch.device,
    dtype: str | None,
    assets: str | None,
    model: str | None,
    flavor: str | None,
    mesh: DeviceMesh | None,
    arrange: Arrange | None,
) -> LoadedModel | CheckpointError:
    """The model of a step, or what is wrong with its files.

    :raises HekatonError: for what is wrong with it otherwise, as :func:`load_checkpoint`.
    """
    with fetched(step) as place:
        try:
            stored = open_model(place)
        except CheckpointError as error:
            name_source(error, place, step)
            return error
        config = recorded_config(plugins, stored, dtype=dtype, model=model, flavor=flavor)
        meta = build_meta(config, plugins, ParallelDims())
        tokenizer = tokenizer_of_run(config, plugins, stored, assets=assets, model=meta.config)
        check_vocabulary(tokenizer, meta.config, what=str(step))
        _check_names(meta.model, stored.tensors, what=str(step))
        try:
            with stored.verified():
                _place(config, meta, mesh, arrange)
                _fill(meta.model, stored.tensors, device=device)
        except CheckpointError as error:
            name_source(error, place, step)
            return error
    return LoadedModel(
        source=str(step),
        spec=meta.spec,
        config=meta.config,
        model=meta.model,
        tokenizer=tokenizer,
        facts=facts_of_step(stored.manifest.describe),
    )


def load_folder(
    folder: Path,
    plugins: Plugins,
    *,
    format_name: str,
    device: torch.device,
    dtype: str | None = None,
    assets: str | None = None,
    model: str | None = None,
    leave_out: Collection[str] = (),
    mesh: DeviceMesh | None = None,
    arrange: Arrange | None = None,
) -> LoadedModel:
    """Load a model from a folder in another format, with the tokenizer in it.

    :param dtype: as in :func:`load_checkpoint`, and so are the others.
    :param leave_out: other models in the folder that are not read, such as ``vision``.
    :raises CheckpointError: for a folder that is of no model, or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder '{folder}'")
    weights = build_format(plugins, format_name).open(folder)
    found = counterpart_of(plugins, weights.config, model=model, what=str(folder))
    tensors = found.from_hf(weights, leave_out=leave_out, what=str(folder))
    for notice in found.table.notices(weights.tensors):
        log.warning("%s: %s", folder, notice)
    with _default_dtype(DTYPES[dtype or dtype_of(tensors)]):
        built = found.on_meta()
    tokenizer: Any = ByteTokenizer()  # of a model without a vocabulary, which is given no tokens
    if assets is not None or hasattr(found.config, "vocab_size"):
        tokenizer = tokenizer_of_folder(assets or str(folder), plugins, format_name)
        check_vocabulary(tokenizer, found.config, what=str(folder))
    _check_names(built, tensors, what=str(folder))
    if mesh is not None or arrange is not None:
        _place(*_described(found, built, plugins), mesh, arrange)
    _fill(built, tensors, device=device)
    return LoadedModel(
        source=str(folder),
        spec=found.spec,
        config=found.config,
        model=built,
        tokenizer=tokenizer,
        facts=found.facts_of(weights),
    )


def plain_model(
    config: JobConfig, plugins: Plugins, parts: Sequence[nn.Module], *, device: torch.device
) -> nn.Module:
    """The model of a run on this process alone, as it was before it was sharded, in eval mode.

    :param parts: of the run, on one process; their weights are copied one by one.
    """
    model = build_meta(config, plugins, ParallelDims()).model
    tensors = {name: _gathered(tensor) for name, tensor in stored_tensors(parts).items()}
    _fill(model, tensors, device=device)
    return model


def _gathered(tensor: torch.Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda region: plain(tensor.detach())[region])


def _usable_steps(location: str) -> list[Folder]:
    """The steps to be tried, one after the other: the one that is meant, or the good ones, newest first.

    :raises CheckpointError: when there is none.
    """
    steps = find_steps(location)
    if len(steps) == 1 and steps[0].folder == folder_at(location):
        if not steps[0].external and steps[0].status != "good":
            log.warning("%s is %s", location, steps[0].status)
        return [steps[0].folder]
    wrong = {
        step.name: step.wrong or "its loss or its weights were not finite"
        for step in steps
        if step.status != "good"
    }
    for name, reason in reversed(wrong.items()):
        log.warning("skipping %s in %s: %s", name, location, reason)
    good = [step.folder for step in reversed(steps) if step.name not in wrong]
    if not good:
        raise CheckpointError(
            f"no step in '{location}' can be loaded",
            hint="\n".join(f"{name}: {reason}" for name, reason in wrong.items()),
        )
    return good


def _check_names(model: nn.Module, tensors: Mapping[str, LazyTensor], *, what: str) -> None:
    """:raises CheckpointError: naming the tensors of which there are other ones than those of the model."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model_tensors([model]).items()}
    there = {name: tensor.shape for name, tensor in tensors.items()}
    lacking = lacking_elsewhere([model], there, what=what)
    if lacking:
        log.warning("not in %s, and as in a new model: %s", what, listed(sorted(lacking)))
    lines = [
        f"{name} is {there.get(name, 'not')} there, {wanted.get(name, 'not')} in the model"
        for name in sorted({*wanted, *there} - lacking)
        if wanted.get(name) != there.get(name)
    ]
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        raise CheckpointError(f"{what} does not fit its model", hint="\n".join([*lines[:_SHOWN], *more]))


def _described(found: Counterpart, model: nn.Module, plugins: Plugins) -> tuple[JobConfig, MetaModel]:
    """A model of another format as one of a run, which has a plan."""
    dtype = next(name for name, one in DTYPES.items() if one == next(model.parameters()).dtype)
    config = config_of(
        plugins, {"model": {"name": found.spec.name, "flavor": found.flavor}, "training": {"dtype": dtype}}
    )
    plan = found.spec.plan(found.config)
    draft = Draft(what=found.spec.name, config=found.config, model=model, plan=plan, init={})
    return config, MetaModel(
        spec=found.spec,
        config=found.config,
        model=model,
        plan=plan,
        initializers={},
        converters=(),
        draft=draft,
    )


def _place(config: JobConfig, meta: MetaModel, mesh: DeviceMesh | None, arrange: Arrange | None) -> None:
    if arrange is not None:
        arrange(config, meta)
    else:
        if mesh is not None:
            check_shardable(meta.model, what=meta.spec.name)
            _shard(meta.model, meta.plan, mesh)


def _shard(model: nn.Module, plan: ParallelPlan, mesh: DeviceMesh) -> None:
    """Shard the parameters of a model on the meta device, a block at a time as for training."""
    from torch.distributed.fsdp import fully_shard

    entangled = tied_across(model, plan)
    for block in (module for _, module in blocks(model, plan) if module not in entangled):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _fill(model: nn.Module, tensors: Mapping[str, LazyTensor], *, device: torch.device) -> None:
    """Give a model on the meta device memory and weights, which are read one by one."""
    materialize(model, device)
    fill({name: one for name, one in model_tensors([model]).items() if name in tensors}, tensors)
    model.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
