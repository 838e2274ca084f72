"""A trained model on a layout of several processes, without a run: to score and continue texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from hekaton.building import MetaModel, parallelize_model
from hekaton.config import JobConfig
from hekaton.config.job import config_of
from hekaton.distributed import Process
from hekaton.errors import ConfigError, ConfigErrors, HekatonError, choices_hint
from hekaton.loss import NextToken
from hekaton.mesh import ParallelDims
from hekaton.plugins import Plugins
from hekaton.rules import experts, layout, processes
from hekaton.rules.run import Run
from hekaton.scoring.forward import Forward, LayoutForward

DEGREES = (
    "data_parallel_replicate_degree",
    "data_parallel_shard_degree",
    "tensor_parallel_degree",
    "expert_parallel_degree",
    "expert_tensor_parallel_degree",
)
"""What a model is placed by outside of a run; also ``expert_dispatcher`` and ``sequence_parallel``."""
OTHERS = ("expert_dispatcher", "sequence_parallel")


class Placement:
    """For ``arrange`` of :mod:`hekaton.loading`: cuts the model by given degrees.

    Each process must have a process group. :attr:`forward` runs the model once it is loaded.

    :param parallelism: fields of ``[parallelism]``, of :data:`DEGREES` and :data:`OTHERS`.
    """

    forward: Forward

    def __init__(self, parallelism: Mapping[str, Any], process: Process, plugins: Plugins) -> None:
        """:raises ConfigError: for a field that is not among them."""
        for name in parallelism:
            if name not in (*DEGREES, *OTHERS):
                raise ConfigError(
                    f"parallelism.{name}: a model that is not trained is placed without it",
                    hint=choices_hint(name, [*DEGREES, *OTHERS]),
                )
        self._settings = config_of(plugins, {"parallelism": dict(parallelism)}).parallelism
        self._process, self._plugins = process, plugins

    @property
    def is_replicas(self) -> bool:
        """Whether each process has the whole model."""
        settings = self._settings
        cut = settings.tensor_parallel_degree * settings.expert_parallel_degree
        cut *= settings.expert_tensor_parallel_degree
        return cut == 1 and settings.data_parallel_replicate_degree == self._process.world_size

    def __call__(self, config: JobConfig, meta: MetaModel) -> None:
        """:raises ConfigErrors: for degrees that fit neither the processes nor the model."""
        training = config.training
        training = training.model_copy(
            update={"mixed_precision_param": training.dtype, "enable_cpu_offload": False}
        )
        config = config.model_copy(
            update={
                "parallelism": self._settings,
                "training": training,
                "activation_checkpoint": config.activation_checkpoint.model_copy(update={"mode": "none"}),
                "compile": config.compile.model_copy(update={"enable": False}),
            }
        )
        self._check(config, meta)
        device = self._process.device
        dims = ParallelDims.of(config, world_size=self._process.world_size)
        meshes = dims.build_mesh(device.type)
        built = parallelize_model(meta, NextToken(), meshes, dims, config, self._plugins)
        self.forward = LayoutForward(built, meshes, dims, config, device=device)

    def _check(self, config: JobConfig, meta: MetaModel) -> None:
        run = Run(config, self._plugins, {}, self._process.world_size, self._process.device.type)
        vars(run).update(model=meta.config, meta=meta)  # a folder's model has no flavor to be built from
        rules = (
            processes.degrees_fit,
            layout.model_divides,
            layout.plan_can_be_carried_out,
            experts.experts_are_there,
            experts.experts_can_be_dealt_out,
        )
        problems: list[HekatonError] = [problem for rule in rules for problem in rule(run)]
        if problems:
            raise problems[0] if len(problems) == 1 else ConfigErrors(problems)


def copies() -> dist.ProcessGroup | None:
    """The processes that have copies of a model: all of them."""
    return dist.group.WORLD
