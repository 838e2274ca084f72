"""From a model's specification to a parallelised model with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.components import build_component
from hekaton.contributions import (
    ContextParallel,
    Converter,
    Dispatcher,
    Model,
    Objective,
    ParallelStyle,
)
from hekaton.draft import Draft, apply_converters
from hekaton.errors import ConfigError, DataError
from hekaton.init import Initializer, initialize, resolve_init
from hekaton.mesh import Meshes, ParallelDims
from hekaton.meta import given, on_meta, tables_of
from hekaton.objective import ObjectiveContext, TrainingObjective
from hekaton.overrides import override
from hekaton.parallel.apply import Layout, parallelize
from hekaton.parallel.context import ContextGroup, check_sequences, use_attention_backend
from hekaton.parallel.contract import needed_inputs, run_end
from hekaton.parallel.experts import ExpertGroup, expert_entries
from hekaton.parallel.fsdp import DTYPES, needs_fsdp
from hekaton.parallel.pipeline import cut, stage_layout
from hekaton.parallel.plan import ParallelPlan, check_plan, ends
from hekaton.parallel.tensor import StyleMaker, TensorContext, tensor_entries
from hekaton.parallel.ties import tie, ties
from hekaton.patterns import with_owners
from hekaton.plugins import Plugins
from hekaton.spec import ModelConverter, TrainSpec, load_spec

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.data import TextTokenizer


def model_config(config: JobConfig, plugins: Plugins) -> tuple[TrainSpec, Any]:
    """The specification of the named model, and its configuration: flavor, own section, overrides.

    :raises UnknownName: for a model or flavor that does not exist.
    :raises ConfigError: for values that the model's configuration does not take.
    """
    record = plugins.get(Model, config.model.name)
    spec = load_spec(record)
    model = spec.flavor(config.model.flavor)
    section = plugins.section_of(record)
    if spec.configure is not None:
        try:
            configured = spec.configure(model, config.section(section) if section else None)
        except (ValueError, AssertionError) as e:
            where = f"[{section}]" if section else f"model '{spec.name}'"
            raise ConfigError(f"{where}: {e}") from e
        model = given(spec, "configure", configured, type(model))
    return spec, override(model, config.model.overrides, spec.name)


def check_vocabulary(tokenizer: TextTokenizer, model_config: Any, config: JobConfig) -> None:
    """:raises DataError: when the tokenizer has more ids than the model has rows for."""
    rows = getattr(model_config, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise DataError(
            f"tokenizer '{config.model.tokenizer}' has {tokenizer.vocab_size:,} ids, "
            f"{config.model.name} {config.model.flavor} has vocab_size {rows:,}",
            hint="choose another flavor or tokenizer, or set model.overrides.vocab_size",
        )


@dataclass(frozen=True, kw_only=True)
class MetaModel:
    """The whole model before it is cut: on the meta device, converted, its tables resolved.

    :param draft: the model after the converters; it says how an export merges what they added.
    """

    spec: TrainSpec
    config: Any
    model: nn.Module
    plan: ParallelPlan
    initializers: Mapping[str, Initializer]
    converters: Sequence[ModelConverter]
    draft: Draft


def build_meta(config: JobConfig, plugins: Plugins, dims: ParallelDims) -> MetaModel:
    """Build the model on the meta device, run the converters, and check its tables against it."""
    spec, settings = model_config(config, plugins)
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.training.dtype])
    try:
        model = on_meta(spec, settings)
    finally:
        torch.set_default_dtype(default)
    plan, init = tables_of(spec, settings)
    draft = Draft(what=spec.name, config=settings, model=model, plan=plan, init=init)
    converters = {
        name: build_component(config, plugins, Converter, name, dims) for name in config.model.converters
    }
    draft = apply_converters(draft, converters)
    what = " after ".join([spec.name, *(f"converter '{name}'" for name in reversed(converters))])
    buffer_owners(draft.model, what=what)
    check_plan(draft.model, draft.plan, what=what)
    return MetaModel(
        spec=spec,
        config=settings,
        model=draft.model,
        plan=draft.plan,
        initializers=resolve_init(draft.model, draft.init, what=what),
        converters=list(converters.values()),
        draft=draft,
    )


@dataclass(frozen=True, kw_only=True)
class BuiltModel:
    """What this rank runs.

    :param parts: stage -> its part of the model; without a pipeline stage 0 is all of it.
    :param layout: how the model was cut.
    :param context: the ranks that share a sequence, ``None`` without context parallel.
    :param shapes: under a pipeline, for each stage the tensors that go into it, and last those that come out,
        for one microbatch on one rank, on the meta device; empty otherwise.
    """

    parts: Mapping[int, nn.Module]
    layout: Layout
    context: ContextGroup | None
    shapes: Sequence[Sequence[torch.Tensor]]


def build_objective(
    meta: MetaModel, dims: ParallelDims, config: JobConfig, plugins: Plugins, *, device: torch.device
) -> TrainingObjective:
    """The objective that the model is trained for."""
    mixed = needs_fsdp(dims, config.training)
    context = ObjectiveContext(
        device=device,
        dtype=DTYPES[config.training.mixed_precision_param if mixed else config.training.dtype],
        dims=dims,
        model=meta.config,
        sequence_is_cut=dims.cp > 1 or (dims.pp > 1 and dims.tp > 1 and config.parallelism.sequence_parallel),
    )
    name = config.training.objective or meta.spec.objective
    built: TrainingObjective = build_component(config, plugins, Objective, name, context)
    return built


def parallelize_model(
    meta: MetaModel,
    objective: TrainingObjective,
    meshes: Meshes,
    dims: ParallelDims,
    config: JobConfig,
    plugins: Plugins,
) -> BuiltModel:
    """Parallelise the model, which stays on the meta device."""
    settings = config.parallelism
    context_group = None
    if dims.cp > 1:
        context_group = ContextGroup(
            process_group=meshes.batch["cp"].get_group(),
            load_balance=settings.context_parallel_load_balancer == "headtail",
        )
    expert_group = None
    if meta.plan.experts and dims.ep * dims.etp > 1:
        expert_group = ExpertGroup(ep=meshes.experts["ep"].get_group(), etp=meshes.experts["etp"].get_group())
    layout = make_layout(meta, dims, config, plugins, context_group, expert_group)
    if config.model.attention_backend is not None:
        use_attention_backend(meta.model, meta.plan.context, config.model.attention_backend)
    if layout.context is not None:
        length = config.training.seq_len
        declared = [*objective.inputs(length), *objective.targets(length)]
        check_sequences(declared, layout.context, degree=dims.cp)
    shapes = _stage_shapes(meta, objective, layout, dims, config) if layout.stages is not None else ()
    parts = parallelize(meta.model, layout, meshes, dims, config)
    return BuiltModel(parts=parts, layout=layout, context=context_group, shapes=shapes)


def give_memory(built: BuiltModel, config: JobConfig, *, device: torch.device) -> None:
    """Give what this rank runs memory on ``device``, uninitialised, in training mode; parameters that are
    offloaded stay on the CPU."""
    memory = torch.device("cpu") if config.training.enable_cpu_offload else device
    for part in built.parts.values():
        materialize(part, memory, buffers=device)
        part.train()


def initialize_parts(built: BuiltModel, meta: MetaModel, *, seed: int) -> None:
    """Give what this rank runs the weights that the model starts from."""
    for part in built.parts.values():
        initialize(part, meta.initializers, seed=seed)


def make_layout(
    meta: MetaModel,
    dims: ParallelDims,
    config: JobConfig,
    plugins: Plugins,
    context_group: ContextGroup | None = None,
    expert_group: ExpertGroup | None = None,
) -> Layout:
    """Make the model's plan concrete: look up its styles and strategies, cut its stages. Moves nothing.

    :raises ConfigError: for what the plan cannot do, :class:`UnknownName` for a style nobody contributes.
    """
    settings = config.parallelism
    styles = expert_styles(meta, config, plugins)
    dispatcher = None
    if expert_group is not None:
        dispatcher = build_component(config, plugins, Dispatcher, config.expert_dispatcher(), expert_group)
    context = None
    if context_group is not None:
        strategy = config.context_parallel_strategy()
        context = build_component(config, plugins, ContextParallel, strategy, context_group)
    return Layout(
        plan=meta.plan,
        styles=tensor_styles(meta, config, plugins) if dims.tp > 1 else {},
        parallelize=meta.spec.parallelize,
        tensor=TensorContext(
            sequence_parallel=settings.sequence_parallel, loss_parallel=not settings.disable_loss_parallel
        ),
        context=context,
        experts=styles,
        dispatcher=dispatcher,
        stages=stage_layout(meta.model, meta.plan, settings) if dims.pp > 1 else None,
    )


def tensor_styles(meta: MetaModel, config: JobConfig, plugins: Plugins) -> dict[str, StyleMaker]:
    """Module name -> what makes its tensor-parallel style.

    :raises UnknownName: for a style that nobody contributes.
    :raises ConfigError: for an entry that does not fit.
    """
    if meta.spec.parallelize is not None and not meta.plan.tensor:
        return {}
    entries = tensor_entries(meta.model, meta.plan, config.parallelism.plan, what=meta.spec.name)
    for style in sorted(set(entries.values())):
        plugins.get(ParallelStyle, style)
    return {
        name: partial(build_component, config, plugins, ParallelStyle, style)
        for name, style in entries.items()
    }


def expert_styles(meta: MetaModel, config: JobConfig, plugins: Plugins) -> dict[str, StyleMaker]:
    """Name of each layer of experts -> what makes the style by which its experts are cut.

    :raises UnknownName: for a style that nobody contributes, where experts are cut.
    """
    entries = expert_entries(meta.model, meta.plan.experts, what=meta.spec.name)
    settings = config.parallelism
    if settings.expert_parallel_degree * settings.expert_tensor_parallel_degree > 1:
        for style in sorted(set(entries.values())):
            plugins.get(ParallelStyle, style)
    return {
        name: partial(build_component, config, plugins, ParallelStyle, style)
        for name, style in entries.items()
    }


def _stage_shapes(
    meta: MetaModel,
    objective: TrainingObjective,
    layout: Layout,
    dims: ParallelDims,
    config: JobConfig,
) -> list[tuple[torch.Tensor, ...]]:
    """What passes between stages: found by running the model's two ends, without its layers, on meta.

    :raises ConfigError: for a model whose forward does not keep the contract of stages.
    """
    stages = layout.stages
    assert stages is not None
    rows = config.parallelism.pipeline_parallel_microbatch_size
    inputs = needed_inputs(meta.model, objective.inputs(config.training.seq_len))
    on_meta = {one.name: one.empty(rows, device=torch.device("meta"), parts=dims.cp) for one in inputs}
    first = tuple(on_meta[one.name] for one in inputs if one.first_stage)
    others = {one.name: on_meta[one.name] for one in inputs if not one.first_stage}
    begin, end = (cut(meta.model, stages, keep) for keep in ends(meta.model, meta.plan))
    hidden = run_end(begin, first, others, which="first", what=meta.spec.name)
    outputs = run_end(end, hidden, others, which="last", what=meta.spec.name)
    if dims.tp > 1 and layout.tensor.sequence_parallel:
        hidden = tuple(one.narrow(1, 0, one.shape[1] // dims.tp) for one in hidden)
    mixed = needs_fsdp(dims, config.training)
    dtype = DTYPES[config.training.mixed_precision_param if mixed else config.training.dtype]
    between = tuple(torch.empty(one.shape, dtype=dtype, device="meta", requires_grad=True) for one in hidden)
    last = tuple(one.detach().to(dtype).requires_grad_() for one in outputs)
    return [first, *([between] * (len(stages.modules) - 1)), last]


def buffer_owners(model: nn.Module, *, what: str) -> list[nn.Module]:
    """The modules whose ``reset_buffers()`` fills the buffers of a model, from the outside in: for each
    buffer the nearest one around it that has the method.

    :raises ConfigError: for a buffer that none of them owns.
    """
    modules = dict(model.named_modules())
    owners: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if all(buffer is None for buffer in module._buffers.values()):
            continue
        around = [*with_owners(name), ""]
        owner = next((one for one in around if hasattr(modules[one], "reset_buffers")), None)
        if owner is None:
            where = f": {', '.join(module._buffers)} of '{name}'" if name else ""
            raise ConfigError(
                f"model '{what}' has buffers and no reset_buffers() to fill them{where}",
                hint="models are built without memory: define reset_buffers() on the module that has them, "
                "or compute the values in forward",
            )
        owners[owner] = modules[owner]
    return [module for name, module in modules.items() if name in owners]


def materialize(model: nn.Module, device: torch.device, *, buffers: torch.device | None = None) -> None:
    """Give a model on the meta device memory on ``device``, uninitialised; tied parameters stay tied.

    Buffers are filled by the modules that own them, in ``reset_buffers()``.

    :param buffers: where they are, if not on ``device``: they are not offloaded with the parameters.
    """
    tied = ties(model)
    model.to_empty(device=device)
    tie(model, tied)
    for module in model.modules() if buffers not in (None, device) else ():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=buffers)
    owner: Any
    for owner in buffer_owners(model, what=type(model).__name__):
        owner.reset_buffers()
