"""Rules of a layout: what model and batch must be divisible by, and whether the plan can be carried out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hekaton.building import MetaModel, tensor_styles
from hekaton.contributions import ContextParallel
from hekaton.errors import ConfigError, ConfigErrors, HekatonError, choices_hint
from hekaton.objective import BatchTensor
from hekaton.parallel.fsdp import check_shardable, needs_fsdp
from hekaton.parallel.pipeline import stage_layout
from hekaton.parallel.plan import matching
from hekaton.parallel.schedules import SCHEDULES, SPLIT_BACKWARD, microbatches_needed
from hekaton.parallel.tensor import StyleMaker, TensorContext, cut_sizes
from hekaton.rules.run import Run


def model_divides(run: Run) -> Iterator[HekatonError]:
    """Heads and vocabulary can be cut by tensor parallel, and heads by Ulysses as well."""
    settings = run.config.parallelism
    tensor = settings.tensor_parallel_degree
    ulysses = settings.context_parallel_degree if run.config.context_parallel_strategy() == "ulysses" else 1
    if tensor * ulysses == 1:
        return
    model = run.model
    who = f"{run.config.model.name} {run.config.model.flavor}"
    for field in ("n_heads", "n_kv_heads", "vocab_size"):
        size = getattr(model, field, None)
        by, degrees = tensor, "parallelism.tensor_parallel_degree"
        if field != "vocab_size" and ulysses > 1:
            by, degrees = tensor * ulysses, f"{degrees} × context_parallel_degree (ulysses)"
        if isinstance(size, int) and by > 1 and size % by:
            choices = [str(degree) for degree in range(1, min(size, 64) + 1) if size % degree == 0]
            yield run.violation(
                f"{degrees} = {by} does not divide {field} = {size} of {who}",
                "parallelism.tensor_parallel_degree",
                "parallelism.context_parallel_degree",
                hint=f"choose one of {', '.join(choices)}",
            )


def sequence_divides(run: Run) -> Iterator[HekatonError]:
    """Sequences can be cut by context parallel, twice with head-tail balancing, and by tensor parallel."""
    settings = run.config.parallelism
    context, tensor = settings.context_parallel_degree, settings.tensor_parallel_degree
    balanced = (
        settings.context_parallel_load_balancer == "headtail"
        and run.config.context_parallel_strategy() != "ulysses"
    )
    stretches = context * (2 if balanced and context > 1 else 1)
    if run.fixed_row is not None:
        yield from _fixed_sequences_divide(run, run.fixed_row, stretches)
        return
    lengths = {"training.seq_len": run.config.training.seq_len}
    if run.config.validation.enable:
        lengths["validation.seq_len"] = run.config.validation.seq_len
    for field, length in lengths.items():
        if length % stretches:
            twice = " (twice, for head-tail load balancing)" if stretches > context else ""
            yield run.violation(
                f"{field} = {length} is not divisible by context_parallel_degree = {context}{twice}",
                field,
                "parallelism.context_parallel_degree",
                hint=f"choose a multiple of {stretches}",
            )
        elif settings.sequence_parallel and tensor > 1 and (length // context) % tensor:
            part = f"its part of {length // context} tokens" if context > 1 else "it"
            yield run.violation(
                f"{field} = {length}: {part} is not divisible by tensor_parallel_degree = {tensor}, as "
                "sequence parallel needs",
                field,
                "parallelism.tensor_parallel_degree",
                hint=f"choose a multiple of {context * tensor}, or parallelism.sequence_parallel = false",
            )


def _fixed_sequences_divide(run: Run, row: Sequence[BatchTensor], stretches: int) -> Iterator[HekatonError]:
    """Of sequences that have their length from the same field, the first is named."""
    context = run.config.parallelism.context_parallel_degree
    for one in {one.length_from or one.name: one for one in reversed(row)}.values():
        length = None if one.sequence is None else one.shape[one.sequence]
        if length is not None and length % stretches:
            twice = " (twice, for head-tail load balancing)" if stretches > context else ""
            sizes = f"a {one.length_from}" if one.length_from else "sizes"
            yield run.violation(
                f"'{one.name}' has a sequence of {length}, which is not divisible by "
                f"context_parallel_degree = {context}{twice}",
                *([one.length_from] if one.length_from else []),
                "parallelism.context_parallel_degree",
                hint=f"choose {sizes} with which it is a multiple of {stretches}",
            )


def microbatches_fit(run: Run) -> Iterator[HekatonError]:
    """The batch gives the pipeline whole microbatches, and as many as its schedule needs."""
    settings, training = run.config.parallelism, run.config.training
    degree = settings.pipeline_parallel_degree
    if degree == 1:
        return
    size, rows = settings.pipeline_parallel_microbatch_size, training.local_batch_size
    fields = ("parallelism.pipeline_parallel_microbatch_size", "training.local_batch_size")
    if rows % size:
        yield run.violation(
            f"training.local_batch_size = {rows} is not divisible by "
            f"parallelism.pipeline_parallel_microbatch_size = {size}",
            *fields,
        )
    if run.config.validation.enable and run.config.validation.local_batch_size != rows:
        yield run.violation(
            f"validation.local_batch_size = {run.config.validation.local_batch_size} must be "
            f"training.local_batch_size = {rows} under a pipeline, whose microbatches are of fixed number",
            "validation.local_batch_size",
        )
    if run.config.validation.enable and run.config.validation.seq_len != training.seq_len:
        yield run.violation(
            f"validation.seq_len = {run.config.validation.seq_len} must be training.seq_len = "
            f"{training.seq_len} under a pipeline, whose stages exchange tensors of one shape",
            "validation.seq_len",
        )
    csv = settings.pipeline_parallel_schedule_csv
    if csv:
        if not Path(csv).is_file():
            yield run.violation(
                f"there is no file '{csv}' (parallelism.pipeline_parallel_schedule_csv)",
                "parallelism.pipeline_parallel_schedule_csv",
            )
        return
    schedule = settings.pipeline_parallel_schedule
    if schedule not in SCHEDULES:
        yield run.violation(
            f"unknown pipeline schedule '{schedule}'",
            "parallelism.pipeline_parallel_schedule",
            hint=choices_hint(schedule, SCHEDULES),
        )
        return
    needed = microbatches_needed(schedule, degree)
    if rows // size < needed:
        yield run.violation(
            f"schedule '{schedule}' on {degree} pipeline ranks needs {needed} microbatches, "
            f"local_batch_size {rows} / microbatch_size {size} gives {rows // size}",
            *fields,
            "parallelism.pipeline_parallel_schedule",
            hint=f"choose training.local_batch_size = {needed * size} or more",
        )


def split_backward_keeps_parameters(run: Run) -> Iterator[HekatonError]:
    """Schedules that go backward twice over a stage need its parameters to stay gathered in between.

    With torch 2.13, resharding after forward gives them wrong gradients without an error.
    """
    settings = run.config.parallelism
    if settings.pipeline_parallel_degree == 1 or settings.fsdp_reshard_after_forward != "always":
        return
    schedule, csv = settings.pipeline_parallel_schedule, settings.pipeline_parallel_schedule_csv
    if csv:
        text = Path(csv).read_text(encoding="utf-8", errors="replace") if Path(csv).is_file() else ""
        splits = re.search(r"\d[IW]\d", text) is not None
        what, field = f"the schedule of '{csv}'", "parallelism.pipeline_parallel_schedule_csv"
    else:
        splits = schedule in SPLIT_BACKWARD
        what, field = f"schedule '{schedule}'", "parallelism.pipeline_parallel_schedule"
    if splits:
        yield run.violation(
            f"{what} computes the gradients of weights after those of inputs, and "
            'parallelism.fsdp_reshard_after_forward = "always" frees the parameters in between',
            "parallelism.fsdp_reshard_after_forward",
            field,
            hint='choose fsdp_reshard_after_forward = "default" or "never", or another schedule',
        )


def layout_is_said_once(run: Run) -> Iterator[str]:
    """Settings that another one takes the place of."""
    settings = run.config.parallelism
    if settings.pipeline_parallel_degree > 1:
        if settings.module_fqns_per_model_part is not None:
            yield from _idle(
                run,
                "module_fqns_per_model_part names the stages",
                "pipeline_parallel_layers_per_stage",
                "pipeline_parallel_first_stage_less_layers",
                "pipeline_parallel_last_stage_less_layers",
            )
        if settings.pipeline_parallel_schedule_csv:
            yield from _idle(
                run, "pipeline_parallel_schedule_csv is the schedule", "pipeline_parallel_schedule"
            )
    if settings.context_parallel_degree > 1:
        if settings.context_parallel_strategy is not None:
            yield from _idle(
                run, "context_parallel_strategy takes its place", "context_parallel_rotate_method"
            )
        if run.config.context_parallel_strategy() == "ulysses":
            yield from _idle(
                run, "ulysses gives every rank the whole sequence", "context_parallel_load_balancer"
            )


def _idle(run: Run, why: str, *names: str) -> Iterator[str]:
    settings = run.config.parallelism
    for name in names:
        default = type(settings).model_fields[name].default
        if run.is_set(f"parallelism.{name}") and getattr(settings, name) != default:
            yield f"parallelism.{name}: no effect: {why}"


def plan_can_be_carried_out(run: Run) -> Iterator[HekatonError]:
    """Every entry, style and stage of the plan fits the model, which is built on the meta device."""
    settings = run.config.parallelism
    dims = run.model_dims
    meta = run.meta
    if isinstance(meta, HekatonError):
        for problem in meta.problems if isinstance(meta, ConfigErrors) else [meta]:
            fields = problem.fields if isinstance(problem, ConfigError) else ()
            yield run.violation(problem.message, *fields, hint=problem.hint) if fields else problem
        return
    several = (run.data_parallel_degree or 1) > 1
    if meta.spec.parallelize is None and (several or needs_fsdp(dims, run.config.training)):
        try:
            check_shardable(meta.model, what=run.config.model.name)
        except HekatonError as e:
            yield e
    if dims.tp > 1:
        try:
            styles = tensor_styles(meta, run.config, run.plugins)
        except HekatonError as e:
            yield e
        else:
            yield from _cuts_are_even(run, meta, styles)
    if dims.cp > 1 and not meta.plan.context and meta.spec.parallelize is None:
        yield run.violation(
            f"model '{run.config.model.name}' has no context-parallel plan: "
            "context_parallel_degree must be 1",
            "parallelism.context_parallel_degree",
        )
    elif dims.cp > 1:
        yield from _strategy_can_attend(run, meta)
    if dims.pp > 1 and meta.plan.stages is None:
        yield run.violation(
            f"model '{run.config.model.name}' cannot be cut into pipeline stages, its plan names none: "
            "pipeline_parallel_degree must be 1",
            "parallelism.pipeline_parallel_degree",
        )
    elif dims.pp > 1:
        try:
            stage_layout(meta.model, meta.plan, settings)
        except HekatonError as e:
            yield e


def _strategy_can_attend(run: Run, meta: MetaModel) -> Iterator[HekatonError]:
    """The context-parallel strategy supports what every inner attention requires (its ``requires``)."""
    strategies = {name: one.record for name, one in run.plugins.all(ContextParallel).items()}
    chosen = strategies.get(run.config.context_parallel_strategy())
    if chosen is None:
        return
    required: dict[str, str] = {}
    for name, inner in matching(meta.model, meta.plan.context):
        for what in getattr(inner, "requires", ()):
            required.setdefault(what, name)
    missing = [what for what in required if what not in chosen.supports]
    if not missing:
        return
    others = sorted(name for name, record in strategies.items() if required.keys() <= set(record.supports))
    where = ", ".join(f"{what} ('{required[what]}')" for what in missing)
    yield run.violation(
        f"the context-parallel strategy '{chosen.name}' does not support what the attention of "
        f"{run.config.model.name} {run.config.model.flavor} requires: {where}",
        "parallelism.context_parallel_strategy",
        "parallelism.context_parallel_degree",
        hint=f"choose context_parallel_strategy = {' or '.join(map(repr, others))}"
        if others
        else "choose context_parallel_degree = 1: no installed strategy supports it",
    )


def _cuts_are_even(run: Run, meta: MetaModel, styles: Mapping[str, StyleMaker]) -> Iterator[HekatonError]:
    """Every weight can be cut by the style that it has; what heads and vocabulary say is not repeated."""
    settings = run.config.parallelism
    degree = settings.tensor_parallel_degree
    if any(model_divides(run)):
        return
    context = TensorContext(
        sequence_parallel=settings.sequence_parallel, loss_parallel=not settings.disable_loss_parallel
    )
    who = f"{run.config.model.name} {run.config.model.flavor}"
    sizes = cut_sizes(meta.model, styles, context)
    heads = [getattr(run.model, field, 0) or 0 for field in ("n_heads", "n_kv_heads")]
    common = math.gcd(*sizes.values(), *heads)
    choices = [str(choice) for choice in range(1, min(common, 64) + 1) if common % choice == 0]
    for size in sorted({size for size in sizes.values() if size % degree}):
        patterns = {re.sub(r"\.\d+(?=\.|$)", ".*", name) for name, its in sizes.items() if its == size}
        fields = [name for name, value in vars(run.model).items() if type(value) is int and value == size]
        what = f"{fields[0]} = {size}" if len(fields) == 1 else f"{size}"
        yield run.violation(
            f"parallelism.tensor_parallel_degree = {degree} does not divide {what} of {who}, by which "
            f"{', '.join(sorted(patterns))} are cut",
            "parallelism.tensor_parallel_degree",
            hint=f"choose one of {', '.join(choices)}, or another style in [parallelism.plan]",
        )
