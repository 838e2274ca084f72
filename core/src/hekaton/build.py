"""From a model's specification to a parallelised model with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.contributions import Converter, Model
from hekaton.errors import ConfigError, choices_hint
from hekaton.init import Initializer, initialize, resolve_init
from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.apply import parallelize
from hekaton.parallel.fsdp import DTYPES
from hekaton.parallel.plan import ParallelPlan, check_plan
from hekaton.plugins import Plugins
from hekaton.spec import ModelConverter, TrainSpec

if TYPE_CHECKING:
    from hekaton.config import JobConfig


def model_config(config: JobConfig, plugins: Plugins) -> tuple[TrainSpec, Any]:
    """The specification of the named model, and its configuration: flavor, own section, overrides.

    :raises UnknownName: for a model or flavor that does not exist.
    :raises ConfigError: for an override of a field that the model does not have.
    """
    record = plugins.get(Model, config.model.name)
    spec: TrainSpec = record.spec.load()
    flavor = config.model.flavor
    if flavor not in spec.flavors:
        raise ConfigError(
            f"unknown flavor '{flavor}' of model '{spec.name}'", hint=choices_hint(flavor, spec.flavors)
        )
    model = spec.flavors[flavor]
    section = plugins.section_of(record)
    if spec.configure is not None:
        model = spec.configure(model, config.section(section) if section else None)
    return spec, _override(model, config.model.overrides, spec.name)


def _override(model: Any, overrides: Mapping[str, Any], name: str) -> Any:
    if not overrides:
        return model
    assert is_dataclass(model)
    assert not isinstance(model, type)
    known = [field.name for field in fields(model)]
    for key in overrides:
        if key not in known:
            raise ConfigError(
                f"model.overrides: '{key}' is not a field of {name}'s configuration",
                hint=choices_hint(key, known),
            )
    return replace(model, **overrides)


@dataclass(frozen=True, kw_only=True)
class MetaModel:
    """The whole model before it is cut: on the meta device, converted, its tables resolved."""

    spec: TrainSpec
    config: Any
    model: nn.Module
    plan: ParallelPlan
    initializers: Mapping[str, Initializer]
    converters: Sequence[ModelConverter]


def build_meta(config: JobConfig, plugins: Plugins, dims: ParallelDims) -> MetaModel:
    """Build the model on the meta device, run the converters, and check its tables against it."""
    spec, settings = model_config(config, plugins)
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.training.dtype])
    try:
        with torch.device("meta"):
            model = spec.model(settings)
    finally:
        torch.set_default_dtype(default)
    if next(model.buffers(), None) is not None and not hasattr(model, "reset_buffers"):
        raise ConfigError(
            f"model '{spec.name}' has buffers and no reset_buffers() to fill them",
            hint="models are built without memory: define reset_buffers(), or compute the values in forward",
        )
    converters = []
    for name in config.model.converters:
        record = plugins.get(Converter, name)
        section = plugins.section_of(record)
        converter = record.build.load()(config.section(section) if section else None, dims)
        converter.convert(model)
        converters.append(converter)
    plan = spec.plan(settings)
    check_plan(model, plan, what=spec.name)
    return MetaModel(
        spec=spec,
        config=settings,
        model=model,
        plan=plan,
        initializers=resolve_init(model, spec.init(settings), what=spec.name),
        converters=converters,
    )


def build_model(
    meta: MetaModel, meshes: Meshes, dims: ParallelDims, config: JobConfig, *, device: torch.device, seed: int
) -> list[nn.Module]:
    """Parallelise the model, give it memory on ``device`` and its initial weights.

    :returns: the parts of the model that this rank runs, in training mode.
    """
    model_parts = parallelize(meta.model, meta.plan, meshes, dims, config)
    memory = torch.device("cpu") if config.training.enable_cpu_offload else device
    for part in model_parts:
        materialize(part, memory)
        initialize(part, meta.initializers, seed=seed)
        part.train()
    return model_parts


def materialize(model: nn.Module, device: torch.device) -> None:
    """Give a model on the meta device memory on ``device``, uninitialised; tied parameters stay tied.

    Buffers are the model's own to fill, in ``reset_buffers()``.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model.to_empty(device=device)
    for first, *others in names.values():
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))
    if next(model.buffers(), None) is not None:
        reset_buffers: Any = model.reset_buffers
        reset_buffers()
