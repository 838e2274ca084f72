"""A trained model opened for evaluation: on this process, as a copy on each of several, or cut by degrees."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from hekaton.building import MetaModel
from hekaton.cli import trained_model
from hekaton.config import JobConfig
from hekaton.config.sections import CommSection
from hekaton.distributed import Process, process_group, this_process
from hekaton.errors import ConfigError
from hekaton.loaded_model import LoadedModel
from hekaton.plugins import Plugins
from hekaton.scoring.forward import Forward, PlainForward
from hekaton.scoring.layout import Placement, copies


@contextlib.contextmanager
def opened(
    plugins: Plugins,
    *,
    device: str | None = None,
    parallelism: Mapping[str, Any] | None = None,
    **model: Any,
) -> Iterator[tuple[LoadedModel, Forward]]:
    """Load a model, and what runs it. Under torchrun every process of the launch calls this.

    :param device: ``cpu`` or ``cuda``; by default CUDA where there is a device.
    :param parallelism: fields of ``[parallelism]``. By default each process has a copy of the model.
    :param model: which one, as :func:`hekaton.cli.trained_model.load` is told.
    :raises ConfigError: for a device that is not there, and degrees that do not fit.
    :raises CheckpointError: for a checkpoint that is not there, damaged, or being written.
    """
    process = _process(device)
    loaded = partial(trained_model.load, plugins, device=process.device, **model)
    with contextlib.ExitStack() as after:
        if process.world_size == 1 and not parallelism:
            found = loaded()
            forward: Forward = PlainForward(found.model, cache=found.spec.cache)
        else:
            after.enter_context(process_group(process, CommSection(), dump_folder="."))
            given = dict(parallelism or {"data_parallel_replicate_degree": process.world_size})
            placement = Placement(given, process, plugins)
            if placement.is_replicas:
                found = loaded(arrange=_as_it_is)
                forward = PlainForward(found.model, cache=found.spec.cache, group=copies())
            else:
                found = loaded(arrange=placement)
                forward = placement.forward
        found.check_length(found.facts.positions or 1)
        yield found, forward


def _as_it_is(config: JobConfig, meta: MetaModel) -> None:
    """Each process has the whole model; all of them read the same step."""


def _process(device: str | None) -> Process:
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device = {device}: cpu or cuda was expected")
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device = {device}: there is no CUDA device", hint="say cpu")
    process = this_process()
    if device is None or process.device.type == device.partition(":")[0]:
        return process
    return Process(process.rank, process.world_size, torch.device("cpu"))
