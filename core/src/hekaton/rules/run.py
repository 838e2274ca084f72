"""The run that rules are about: its configuration, where it is to start, and its model on the meta device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from hekaton.building import MetaModel, build_meta, build_objective, model_config
from hekaton.components import build_component
from hekaton.config import JobConfig
from hekaton.contributions import Tokenizer
from hekaton.data import TextTokenizer
from hekaton.errors import ConfigError, HekatonError
from hekaton.mesh import ParallelDims
from hekaton.objective import BatchTensor, TrainingObjective
from hekaton.plugins import Plugins


@dataclass(frozen=True)
class Run:
    """A configuration, and where it is to run.

    :param world_size: number of processes, ``None`` when not known.
    :param here: whether it is to run on this machine, which then needs what the run reads.
    """

    config: JobConfig
    plugins: Plugins
    origins: Mapping[str, str]
    world_size: int | None
    device_type: str
    here: bool = True

    def violation(self, message: str, *fields: str, hint: str = "") -> ConfigError:
        """An error that says where the fields that it is about were set."""
        places = dict.fromkeys(self.origins[field] for field in fields if field in self.origins)
        return ConfigError(message, origin="; ".join(places), hint=hint)

    def is_set(self, field: str) -> bool:
        return field in self.origins

    def set_below(self, field: str) -> list[str]:
        """The keys of a table that are set."""
        return [path for path in self.origins if path.startswith(f"{field}.")]

    @cached_property
    def model(self) -> Any:
        """The model's configuration, ``None`` where it is refused, which a rule says."""
        return _model_settings(self)

    @cached_property
    def tokenizer(self) -> TextTokenizer | HekatonError:
        """The tokenizer, or why it cannot be read."""
        settings = self.config.model
        try:
            built: TextTokenizer = build_component(
                self.config, self.plugins, Tokenizer, settings.tokenizer, settings.hf_assets_path
            )
        except HekatonError as e:
            return e
        return built

    @cached_property
    def meta(self) -> MetaModel | HekatonError:
        """The model on the meta device with its tables, or why there is none."""
        return _meta_model(self)

    @cached_property
    def objective(self) -> TrainingObjective | HekatonError:
        """What the model is trained for, or why it cannot be."""
        if isinstance(self.meta, HekatonError):
            return self.meta
        try:
            return build_objective(
                self.meta, self.model_dims, self.config, self.plugins, device=torch.device("cpu")
            )
        except HekatonError as e:
            return e

    @cached_property
    def fixed_row(self) -> Sequence[BatchTensor] | None:
        """What the objective declares, where its shapes do not follow from ``seq_len``; else ``None``."""
        if isinstance(self.objective, HekatonError):
            return None
        length = self.config.training.seq_len
        short, long = (
            [*self.objective.inputs(given), *self.objective.targets(given)] for given in (length, 2 * length)
        )
        if any(tuple(one.shape) != tuple(other.shape) for one, other in zip(short, long, strict=True)):
            return None
        return short

    @property
    def data_parallel_degree(self) -> int | None:
        """``None`` when the number of processes is not known, or does not fit the degrees."""
        if self.world_size is None or not self.config.parallelism.fits(self.world_size):
            return None
        return self.config.data_parallel_degree(self.world_size)

    @property
    def model_dims(self) -> ParallelDims:
        """The degrees by which the model itself is cut; those of data parallel are 1."""
        settings = self.config.parallelism
        return ParallelDims(
            tp=settings.tensor_parallel_degree,
            pp=settings.pipeline_parallel_degree,
            cp=settings.context_parallel_degree,
            ep=settings.expert_parallel_degree,
            etp=settings.expert_tensor_parallel_degree,
        )


def _model_settings(run: Run) -> Any:
    """The model's configuration, ``None`` where it is refused."""
    try:
        return model_config(run.config, run.plugins)[1]
    except HekatonError:
        return None


def _meta_model(run: Run) -> MetaModel | HekatonError:
    """Build the run's model on the meta device, and check its tables; returns what is wrong otherwise."""
    try:
        return build_meta(run.config, run.plugins, run.model_dims)
    except HekatonError as e:
        return e
    except Exception as e:
        overrides = run.set_below("model.overrides")
        if not overrides:
            raise  # a fault of the model's own
        return run.violation(
            f"{run.config.model.name} {run.config.model.flavor} cannot be built with these overrides: "
            f"{type(e).__name__}: {e}",
            *overrides,
        )
